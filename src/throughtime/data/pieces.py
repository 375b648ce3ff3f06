"""Where a text may be cut without changing its tokens.

A long document is encoded piece by piece. What follows the last safe place of a piece is carried over to the next
one, so that the tokens are those of the whole text:

- bytes and characters: every place is safe;
- words: after a space or a line end;
- byte-level BPE: before a space or a line end that follows a character which is no white space. GPT-2's pattern
  begins a new part there whatever comes before or after, since white space occurs only at the start of its parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

Cut = Callable[[str], int]
"""Gives the length of the longest beginning of a text that can be encoded by itself; 0 where there is none."""

RUN_LIMIT = 1 << 20
"""A run of more characters than this without a safe place is cut all the same, to keep memory bounded."""

_BEFORE_SPACE = re.compile(r"(?<=\S)[ \n]")


def whole_pieces(chunks: Iterable[str], cut: Cut) -> Iterator[str]:
    """The same text as `chunks`, in pieces that end at safe places."""
    carried = ""
    for chunk in chunks:
        text = carried + chunk
        at = cut(text) or (len(text) if len(text) > RUN_LIMIT else 0)
        if at:
            yield text[:at]
        carried = text[at:]
    if carried:
        yield carried


def anywhere(text: str) -> int:
    """Every place is safe."""
    return len(text)


def after_space(text: str) -> int:
    """After the last space or line end."""
    return max(text.rfind(" "), text.rfind("\n")) + 1


def before_space(text: str) -> int:
    """Before the last space or line end that follows something else than white space."""
    at = len(text)
    while at > 0:
        at = max(text.rfind(" ", 0, at), text.rfind("\n", 0, at))
        if at > 0 and not text[at - 1].isspace():
            return at
    return 0


def short_pieces(text: str, length: int) -> list[str]:
    """The text in pieces of about `length` characters, each cut before a space as in `before_space`."""
    pieces, start = [], 0
    while found := _BEFORE_SPACE.search(text, start + length):
        pieces.append(text[start : found.start()])
        start = found.start()
    return [*pieces, text[start:]]
