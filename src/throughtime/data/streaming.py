"""Ids to text while they are made."""

from __future__ import annotations

from throughtime.data.tokenizers import Tokenizer


class StreamDecoder:
    """Turns one id after the other into text, never half a character of it.

    The sum of all that `feed` and the last `flush` give is `tokenizer.decode` of all ids. Bytes that can never become
    UTF-8 come out as U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._reader = tokenizer.codec.reader()

    def feed(self, index: int) -> str:
        """The text that this id completes, which may be none."""
        return self._reader.feed(index)

    def flush(self) -> str:
        """What was kept back, at the end of a text."""
        return self._reader.flush()
