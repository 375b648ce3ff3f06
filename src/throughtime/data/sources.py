"""Where text comes from: documents out of files, folders, globs and standard input, in bounded memory."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

from throughtime.data.cache import cache_root
from throughtime.data.formats import ErrorPolicy, TextFile, reading, rows, text_chunks
from throughtime.data.paths import resolve
from throughtime.data.splits import WHOLE_FILES, held_out_files, held_out_rows, tail_start
from throughtime.errors import DataError
from throughtime.storage import write_file

Split = Literal["all", "train", "valid"]

_ROW_PIECE = 1 << 18
_READ_BYTES = 1 << 20
# Two writes this close together may leave a file with the same time stamp (seconds).
_SETTLED = 2.0


@dataclass(frozen=True)
class Document:
    """One text: a file, or a row of a file.

    `name` is the file's path, with ":line" where the document is a row.
    """

    name: str
    _read: Callable[[], Iterator[str]] = field(repr=False, compare=False)

    def chunks(self) -> Iterator[str]:
        """The text in pieces of at most 1 MiB, in order; it can be read again and again."""
        return self._read()


class Source(Protocol):
    """What can be tokenised: documents, told apart from other sources by their content."""

    @property
    def size(self) -> int:
        """About how many bytes there are to read, for progress and sampling."""
        ...

    def documents(self) -> Iterator[Document]:
        """The documents, in the same order every time."""
        ...

    def fingerprint(self) -> str:
        """A digest of the content."""
        ...


class TextSource:
    """Text from files, folders, globs, "-" (standard input) and "stdlib:" (the sources of Python's own library).

    A plain-text file is one document; each row of a .jsonl, .csv or .parquet file is one, its text in `column`
    ("text" where none is named). All but Parquet may be packed (.gz). A folder gives the files in it, and in the
    folders below, that have a known suffix of text; a file named outright is taken as text whatever its suffix.

    `split` chooses a part, the same for the same `seed`: of rows, and of 20 or more plain-text files, whole
    documents are held out, nearly `valid_fraction` of them and at least one; of fewer files, the last
    `valid_fraction` of each, from the start of a line.

    Raises:
        DataError: a path is missing, empty or matches nothing; while reading: broken, binary or not UTF-8.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        *,
        column: str | None = None,
        errors: ErrorPolicy = "strict",
        split: Split = "all",
        valid_fraction: float = 0.05,
        seed: int = 0,
    ) -> None:
        if not 0 < valid_fraction < 1:
            raise DataError(f"data: the held-out fraction must lie between 0 and 1, got {valid_fraction}")
        self.files = resolve(paths)
        self.column = column
        self.errors: ErrorPolicy = errors
        self.split: Split = split
        self.valid_fraction = valid_fraction
        self.seed = seed

    @property
    def size(self) -> int:
        """About how many bytes of text there are: those of the files, times the part that `split` takes."""
        part = {"all": 1.0, "train": 1 - self.valid_fraction, "valid": self.valid_fraction}[self.split]
        return int(part * sum(file.path.stat().st_size for file in self.files))

    def documents(self) -> Iterator[Document]:
        """The documents of this split, in the order of the files.

        Raises:
            DataError: there is none.
        """
        found = False
        for document in self._documents():
            found = True
            yield document
        if not found:
            names = ", ".join(file.name for file in self.files[:3])
            raise DataError(f"{names}: no text to read (split {self.split!r}); give more text")

    def fingerprint(self) -> str:
        """A digest of the files' content, and of all else that decides which text is read.

        Remembered in the cache for files whose size, times and inode have not changed, so that a large text is
        not read again for it.
        """
        choices = [self.column, self.errors, self.split, self.valid_fraction, self.seed, self._content()]
        choices += [file.format for file in self.files]
        return _digest(json.dumps(choices).encode())

    def _documents(self) -> Iterator[Document]:
        plain = [file for file in self.files if file.format == "text"]
        row = 0
        for file in self.files:
            if file.format == "text":
                yield from self._text_documents(file, plain)
            else:
                for line, text in rows(file, column=self.column, errors=self.errors):
                    if self.split == "all" or self._is_held_out_row(row) == (self.split == "valid"):
                        yield _row_document(f"{file.name}:{line}", text)
                    row += 1

    def _text_documents(self, file: TextFile, plain: list[TextFile]) -> Iterator[Document]:
        start, stop = 0, None
        if self.split != "all" and len(plain) >= WHOLE_FILES:
            if (file in self._held_out_files) != (self.split == "valid"):
                return
        elif self.split != "all":
            cut = self._tail_starts[file]
            start, stop = (0, cut) if self.split == "train" else (cut, None)
        if start != stop:
            yield Document(file.name, lambda: text_chunks(file, errors=self.errors, start=start, stop=stop))

    @cached_property
    def _held_out_files(self) -> frozenset[TextFile]:
        plain = [file for file in self.files if file.format == "text"]
        return frozenset(plain[index] for index in held_out_files(len(plain), self.valid_fraction, self.seed))

    @cached_property
    def _tail_starts(self) -> dict[TextFile, int]:
        return {file: tail_start(file, self.valid_fraction) for file in self.files if file.format == "text"}

    @cached_property
    def _is_held_out_row(self) -> Callable[[int], bool]:
        return held_out_rows(self._rows, self.valid_fraction, self.seed)

    def _rows(self) -> Iterator[tuple[int, str]]:
        for file in self.files:
            if file.format != "text":
                yield from rows(file, column=self.column, errors=self.errors)

    def _content(self) -> str:
        """A digest of the files' bytes, read only where the cache does not know it."""
        stats = [file.path.stat() for file in self.files]
        seen = [
            (str(file.path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
            for file, stat in zip(self.files, stats, strict=True)
        ]
        note = cache_root() / "digests" / _digest(json.dumps(seen).encode())
        if note.is_file():
            return note.read_text("ascii")
        content = _digest(*(_file_digest(file) for file in self.files))
        if max(stat.st_mtime for stat in stats) < time.time() - _SETTLED:
            write_file(note, content)
        return content


def _row_document(name: str, text: str) -> Document:
    return Document(name, lambda: (text[at : at + _ROW_PIECE] for at in range(0, len(text), _ROW_PIECE)))


def _file_digest(file: TextFile) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with reading(file, unpack=False) as stream:
        while block := stream.read(_READ_BYTES):
            digest.update(block)
    return digest.digest()


def _digest(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
