"""Standard input, line by line, of which one can ask whether another line is there already."""

from __future__ import annotations

import os
import select
import stat
from collections import deque
from typing import IO

_PIECE = 1 << 16


class Incoming:
    """What comes in, so that a program may take all that is there and wait for no more than that.

    Lines keep their ends; only the last one may have none. A line that grows beyond `limit` is handed on as it is.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._descriptor = stream.fileno()
        self._is_file = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
        self._lines: deque[bytes] = deque()
        self._partial: list[bytes] = []
        self._size = 0
        self._over = False

    def readline(self, limit: int) -> bytes:
        """The next line, as soon as it is there; empty behind the last one."""
        while not self._lines and not self._over and self._size <= limit:
            self._read()
        if self._lines:
            return self._lines.popleft()
        line, self._partial, self._size = b"".join(self._partial), [], 0
        return line

    def ready(self) -> bool:
        """Whether `readline` would not wait."""
        while not self._lines and not self._over and self._arrived():
            self._read()
        return bool(self._lines) or self._over

    def _arrived(self) -> bool:
        if self._is_file:
            return True
        # Elsewhere select knows sockets alone: each line is then taken by itself.
        return os.name == "posix" and bool(select.select([self._descriptor], [], [], 0)[0])

    def _read(self) -> None:
        piece = os.read(self._descriptor, _PIECE)
        if not piece:
            self._over = True
            return
        *whole, rest = piece.split(b"\n")
        for line in whole:
            self._lines.append(b"".join((*self._partial, line, b"\n")))
            self._partial, self._size = [], 0
        if rest:
            self._partial.append(rest)
            self._size += len(rest)
