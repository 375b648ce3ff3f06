"""Which part of a text is held out: the same for the same seed, and never the same text on both sides."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from throughtime.data.formats import CHUNK_BYTES, TextFile, reading, text_size
from throughtime.errors import DataError

WHOLE_FILES = 20
"""From this many plain-text files on, whole files are held out; below, the last part of each."""


def held_out_files(count: int, fraction: float, seed: int) -> frozenset[int]:
    """Which of `count` files are held out: `fraction` of them, at least one, at random by `seed`."""
    chosen = max(1, min(count - 1, round(count * fraction)))
    return frozenset(random.Random(seed).sample(range(count), chosen))


def held_out_rows(rows: Callable[[], Iterable[object]], fraction: float, seed: int) -> Callable[[int], bool]:
    """A rule that says of each row's number whether it is held out: nearly `fraction` of them, at least one.

    Each row's fate hangs on a hash of its number, so that nothing needs to be counted or kept; only the first
    rows are read, to make sure that there is one on either side.

    Raises:
        DataError: there is one row only.
    """

    def below(row: int) -> bool:
        return _uniform(row, seed) < fraction

    # A text of more rows than these has rows on both sides by the hash alone.
    enough = 1 + max(next(_where(below)), next(_where(lambda row: not below(row))))
    count = sum(1 for _ in islice(rows(), enough))
    if count == enough:
        return below
    if count < 2:
        raise DataError("data: one row cannot be both trained on and held out; give more rows or a validation text")
    ranks = sorted(range(count), key=lambda row: _uniform(row, seed))
    chosen = frozenset(ranks[: max(1, min(count - 1, round(count * fraction)))])
    return chosen.__contains__


def tail_start(file: TextFile, fraction: float) -> int:
    """The byte offset at which the last `fraction` of a plain-text file begins: just after a line end.

    A file whose lines are too long for that is cut between two characters.
    """
    size = text_size(file)
    target = int(size * (1 - fraction))
    later = _next_line_end(file, target)
    if later < size:
        return later
    earlier = _last_line_end(file, target)
    return earlier if earlier >= size // 2 > 0 else _character_start(file, target)


def _next_line_end(file: TextFile, offset: int) -> int:
    """The offset just after the first line end from `offset` on; the size of the file where there is none."""
    with reading(file) as stream:
        stream.seek(offset)
        while block := stream.read(CHUNK_BYTES):
            at = block.find(b"\n")
            if at >= 0:
                return offset + at + 1
            offset += len(block)
    return offset


def _last_line_end(file: TextFile, before: int) -> int:
    """The offset just after the last line end among the first `before` bytes; 0 where there is none."""
    found, offset = 0, 0
    with reading(file) as stream:
        while block := stream.read(min(CHUNK_BYTES, before - offset)):
            at = block.rfind(b"\n")
            found = offset + at + 1 if at >= 0 else found
            offset += len(block)
    return found


def _character_start(file: TextFile, offset: int) -> int:
    """The offset of the first byte of the character that holds `offset`."""
    first = max(0, offset - 3)
    with reading(file) as stream:
        stream.seek(first)
        nearby = stream.read(offset + 1 - first)
    # Bytes 10xxxxxx continue a character; UTF-8 has at most three of them in a row.
    starts = [at for at, byte in enumerate(nearby) if byte & 0xC0 != 0x80]
    return first + starts[-1] if starts else offset


def _uniform(row: int, seed: int) -> float:
    digest = hashlib.blake2b(f"{seed}:{row}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def _where(rule: Callable[[int], bool]) -> Iterator[int]:
    row = 0
    while True:
        if rule(row):
            yield row
        row += 1
