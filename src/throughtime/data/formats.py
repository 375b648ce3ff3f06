"""Reading one file: plain text in pieces, or rows with a text in each column; a fault names the file and the line.

Rows are read with Python's own `json` and `csv` and with pyarrow, not through Hugging Face `datasets`, whose
readers were tried on the same files: its CSV reader (pandas) turns the texts "NA", "null" and "" into missing
values, its JSON reader (a whole block at a time) cannot say which line of the file is broken, and importing it
takes 1.6 s before the first row. Parquet goes through the very pyarrow reader that `datasets` itself uses.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from throughtime.errors import DataError

ErrorPolicy = Literal["strict", "replace"]
Format = Literal["text", "jsonl", "csv", "parquet"]

CHUNK_BYTES = 1 << 19
"""Plain text is read this many bytes at a time."""
LINE_LIMIT = 1 << 28
"""The longest row taken (bytes): a file without line ends must not fill the memory."""

_ROW_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}


@dataclass(frozen=True)
class TextFile:
    """One file to read: where it lies, and the name that messages give it."""

    path: Path
    name: str

    @property
    def compressed(self) -> bool:
        """Whether the file is packed with gzip."""
        return self.path.suffix.lower() == ".gz"

    @property
    def suffix(self) -> str:
        """The suffix in small letters; of a packed file the one before .gz."""
        inner = Path(self.path.stem) if self.compressed else self.path
        return inner.suffix.lower()

    @property
    def format(self) -> Format:
        """How the text lies in the file, by its suffix; whatever is not known is plain text."""
        return _ROW_FORMATS.get(self.suffix, "text")


@dataclass(frozen=True)
class Column:
    """A column of rows: its name, and the option by which a user names another one."""

    name: str
    option: str = "--column"


@contextmanager
def reading(file: TextFile, *, unpack: bool = True) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked unless they are wanted as they lie on the disk.

    Raises:
        DataError: it cannot be read, or its gzip stream is truncated or damaged.
    """
    try:
        with gzip.open(file.path) if file.compressed and unpack else open(file.path, "rb") as stream:
            yield stream  # type: ignore[misc]  # GzipFile reads as a binary file does
    except EOFError:
        raise DataError(f"{file.name}: the gzip stream ends too early; fetch the file again or pack it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{file.name}: not a sound gzip file ({error}); fetch the file again or unpack it") from None
    except OSError as error:
        raise DataError(
            f"{file.name}: cannot be read: {error.strerror or error}; check the path and its permissions"
        ) from None


def text_size(file: TextFile) -> int:
    """The number of bytes of text in a plain-text file, unpacked."""
    if not file.compressed:
        return file.path.stat().st_size
    with reading(file) as stream:
        size = 0
        while block := stream.read(CHUNK_BYTES):
            size += len(block)
        return size


def is_empty(file: TextFile) -> bool:
    """Whether there is no byte in the file."""
    with reading(file) as stream:
        return not stream.read(1)


def text_chunks(file: TextFile, *, errors: ErrorPolicy, start: int = 0, stop: int | None = None) -> Iterator[str]:
    """The text between two byte offsets, in pieces of at most 512 KiB; a byte order mark at the start is dropped.

    Line ends are left as they are.

    Raises:
        DataError: the file holds NUL bytes, or is not UTF-8 (line and byte are named) and `errors` is "strict".
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    with reading(file) as stream:
        stream.seek(start)
        offset = start
        while True:
            block = stream.read(CHUNK_BYTES if stop is None else min(CHUNK_BYTES, stop - offset))
            _refuse_binary(file.name, block, offset)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                at = offset - pending + error.start
                raise _not_utf8(file.name, _line_at(file, at), at, error.object[error.start]) from None
            if offset == 0:
                text = text.removeprefix("\ufeff")
            if text:
                yield text
            if not block:
                return
            offset += len(block)


def rows(file: TextFile, *, column: str | None, errors: ErrorPolicy) -> Iterator[tuple[int, str]]:
    """The rows of a .jsonl, .csv or .parquet file as (line, text); of Parquet, which has no lines, (row, text).

    Blank lines between rows are passed over; nothing else is. `column` is "text" where none is named.

    Raises:
        DataError: a row is broken, has no such column, or holds something there that is not text.
    """
    for number, (text,) in records(file, (Column(column or "text"),), errors=errors):
        yield number, text


def records(file: TextFile, columns: Sequence[Column], *, errors: ErrorPolicy) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The rows of a .jsonl, .csv or .parquet file as in `rows`, with the text of each of the columns.

    Raises:
        DataError: as `rows` does.
    """
    readers = {"jsonl": _jsonl_records, "csv": _csv_records, "parquet": _parquet_records}
    yield from readers[file.format](file, columns, errors)


def lines(file: TextFile, *, errors: ErrorPolicy) -> Iterator[tuple[int, str]]:
    """The lines of a file as (number from 1, the line with its end); a byte order mark at the start is dropped.

    Raises:
        DataError: a line of more than 256 MiB, NUL bytes, or bytes that are not UTF-8 while `errors` is "strict".
    """
    with reading(file) as stream:
        yield from stream_lines(stream, file.name, errors=errors)


class Lines(Protocol):
    """What hands one line after the other, as bytes: a binary file, a pipe, or anything like them."""

    def readline(self, limit: int, /) -> bytes:
        """The next line with its end, of `limit` bytes or little more at most; empty behind the last one."""


def stream_lines(stream: Lines, name: str, *, errors: ErrorPolicy) -> Iterator[tuple[int, str]]:
    """The lines of what is open already, each as soon as it is there; see `lines`."""
    offset = 0
    for number, line in enumerate(iter(lambda: stream.readline(LINE_LIMIT + 1), b""), start=1):
        if len(line) > LINE_LIMIT:
            raise DataError(f"{name}:{number}: a row of more than {LINE_LIMIT >> 20} MiB; split it into several rows")
        _refuse_binary(name, line, offset)
        try:
            text = line.decode("utf-8", errors)
        except UnicodeDecodeError as error:
            raise _not_utf8(name, number, offset + error.start, line[error.start]) from None
        offset += len(line)
        yield number, text.removeprefix("\ufeff") if number == 1 else text


def tab_records(
    numbered: Iterator[tuple[int, str]], name: str, columns: Sequence[Column]
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The rows of tab-separated lines, which the first one names, as (line, the text of each of the columns).

    Nothing is quoted. Blank lines between rows are passed over.

    Raises:
        DataError: a row has more or fewer fields than the header, or no such column.
    """
    header: list[str] | None = None
    places: list[int] = []
    for number, line in numbered:
        fields = line.rstrip("\r\n").split("\t")
        if len(fields) == 1 and not fields[0].strip():
            continue
        if header is None:
            header = fields
            places = _places(f"{name}:{number}", columns, header)
        elif len(fields) != len(header):
            raise DataError(
                f"{name}:{number}: broken row: expected {len(header)} fields as in the header, got {len(fields)}; "
                "a tab stands between two fields and in none"
            )
        else:
            yield number, tuple(fields[place] for place in places)


def _jsonl_records(
    file: TextFile, columns: Sequence[Column], errors: ErrorPolicy
) -> Iterator[tuple[int, tuple[str, ...]]]:
    for number, line in lines(file, errors=errors):
        if not line.strip():
            continue
        where = f"{file.name}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where}: not JSON: {error.msg} at character {error.pos + 1}; each line must be one JSON object"
            ) from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON: {error}; each line must be one JSON object") from None
        if not isinstance(row, dict):
            names = " and ".join(repr(column.name) for column in columns)
            wanted = f"a column {names}" if len(columns) == 1 else f"the columns {names}"
            raise DataError(f"{where}: expected a JSON object with {wanted}, got {_kind(row)}")
        texts = []
        for column in columns:
            if column.name not in row:
                raise _no_column(where, column, list(row))
            text = _as_text(row[column.name], where, column)
            # Only an escape can bring half of a surrogate pair, which is no character, into decoded text.
            texts.append(_whole_characters(text, where, errors) if "\\u" in line else text)
        yield number, tuple(texts)


def _csv_records(
    file: TextFile, columns: Sequence[Column], errors: ErrorPolicy
) -> Iterator[tuple[int, tuple[str, ...]]]:
    # Long texts are the rule here, while the module refuses fields above 128 KiB by default.
    csv.field_size_limit(LINE_LIMIT)
    reader = csv.reader((line for _, line in lines(file, errors=errors)), strict=True)
    header: list[str] | None = None
    places: list[int] = []
    line = 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f'{file.name}:{line}: broken row: {error}; close its quotes and write " inside as ""'
            ) from None
        if row is None:
            return
        if row and header is None:
            header = row
            places = _places(f"{file.name}:{line}", columns, header)
        elif row and header is not None:
            if len(row) != len(header):
                raise DataError(
                    f"{file.name}:{line}: broken row: expected {len(header)} fields as in the header, got {len(row)}; "
                    "a field with commas or line ends needs quotes"
                )
            yield line, tuple(row[place] for place in places)
        line = reader.line_num + 1


def _parquet_records(
    file: TextFile, columns: Sequence[Column], errors: ErrorPolicy
) -> Iterator[tuple[int, tuple[str, ...]]]:
    import pyarrow
    import pyarrow.parquet

    if file.compressed:
        raise DataError(
            f"{file.name}: Parquet is compressed by itself and cannot be read through gzip; unpack it first"
        )
    names = [column.name for column in columns]
    try:
        with pyarrow.parquet.ParquetFile(file.path) as table:
            _places(file.name, columns, table.schema_arrow.names)
            number = 0
            for batch in table.iter_batches(batch_size=256, columns=names):
                for values in zip(*(batch.column(name).to_pylist() for name in names), strict=True):
                    number += 1
                    where = f"{file.name}:{number}"
                    named = zip(values, columns, strict=True)
                    yield number, tuple(_as_text(value, where, column) for value, column in named)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{file.name}: not a sound Parquet file ({reason}); write or fetch it again") from None


def _places(where: str, columns: Sequence[Column], header: list[str]) -> list[int]:
    """Where in a row each of the columns stands."""
    for column in columns:
        if column.name not in header:
            raise _no_column(where, column, header)
    return [header.index(column.name) for column in columns]


def _refuse_binary(name: str, block: bytes, offset: int) -> None:
    if offset == 0 and block[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{name}: this is UTF-16 text; convert it first: iconv -f UTF-16 -t UTF-8")
    at = block.find(b"\0")
    if at >= 0:
        raise DataError(f"{name}: a binary file (a NUL byte at byte {offset + at}); give files of UTF-8 text")


def _line_at(file: TextFile, offset: int) -> int:
    """The number of the line that holds a byte."""
    with reading(file) as stream:
        line, left = 1, offset
        while left and (block := stream.read(min(CHUNK_BYTES, left))):
            line += block.count(b"\n")
            left -= len(block)
    return line


def _not_utf8(name: str, line: int, offset: int, byte: int) -> DataError:
    return DataError(
        f"{name}: line {line}, byte {offset}: not UTF-8 (0x{byte:02x}); "
        "convert the file, or --errors replace goes on with U+FFFD in such places"
    )


def _no_column(where: str, column: Column, columns: list[str]) -> DataError:
    there = ", ".join(columns) if columns else "none"
    return DataError(f"{where}: no column {column.name!r}; the columns there: {there}; choose one with {column.option}")


def _as_text(value: Any, where: str, column: Column) -> str:
    if isinstance(value, str):
        return value
    raise DataError(
        f"{where}: column {column.name!r} must hold text, got {_kind(value)}; choose another with {column.option}"
    )


def _whole_characters(text: str, where: str, errors: ErrorPolicy) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        if errors == "strict":
            raise DataError(
                f"{where}: half a surrogate pair (\\u{ord(text[error.start]):04x}) is no character; "
                "mend the row, or --errors replace goes on with U+FFFD in such places"
            ) from None
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "text",
    }
    return "nothing (null)" if value is None else names.get(type(value), type(value).__name__)
