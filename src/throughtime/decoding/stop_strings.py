"""Strings that end a text, found while the text is made."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Lets text through up to the first stop string, however the pieces cut it.

    What could be the beginning of a stop string is held back until it is seen not to be one. The stop string that is
    complete first counts (of several that end together, the longest), as when the text came character by character.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.found = False

    def feed(self, piece: str) -> str:
        """The text that is certain after one more piece; nothing once `found`."""
        if self.found:
            return ""
        text = self._held + piece
        matches = [(text.index(stop) + len(stop), text.index(stop)) for stop in self._stops if stop in text]
        if matches:
            self.found, self._held = True, ""
            _, start = min(matches)
            return text[:start]
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        certain = len(text) - kept
        self._held = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest beginning of `stop`, but not all of it, that ends `text`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
