"""Pairs of texts, a source and its target: read from one file or from two parallel ones, and split without leakage.

suffix                     a pair is
.csv .jsonl .ndjson        a row, in the columns "source" and "target" or those that are named
.parquet                   the same
.tsv, and all others       a line SOURCE<TAB>TARGET without quotes; with named columns the first line names all fields

All but Parquet may be packed (.gz). Texts are taken as they lie in the file; only the line end is no part of them.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from throughtime.data.formats import Column, ErrorPolicy, Lines, TextFile, lines, records, stream_lines, tab_records
from throughtime.data.paths import resolve
from throughtime.data.sources import Document
from throughtime.errors import DataError

SOURCE_COLUMN = "--source-column"
TARGET_COLUMN = "--target-column"

# Read as it comes, where `resolve` would first copy all of it.
_STANDARD_INPUT = TextFile(Path("-"), "standard input")
_PIECE = 1 << 18


class Pair(NamedTuple):
    """A source text and its target; `where` is "file:line" (of Parquet "file:row", of two files the source's)."""

    where: str
    source: str
    target: str


def read_pairs(
    paths: Sequence[str | Path],
    *,
    source_column: str | None = None,
    target_column: str | None = None,
    errors: ErrorPolicy = "strict",
) -> Iterator[Pair]:
    """The pairs of files, folders, globs or "-" (standard input), in order. Blank lines between rows are passed over.

    Tab-separated lines have two fields and no header unless a column is named; the column that is not named is then
    "source" or "target", as in the other formats.

    Raises:
        DataError: a path is missing or empty; a file holds no pair; a row is broken, lacks a column or a side, has
            more than two fields without named columns, or is not UTF-8 (and `errors` is "strict").
    """
    columns = _pair_columns(source_column, target_column)
    named = source_column is not None or target_column is not None
    for file in resolve(paths):
        found = False
        for number, (source, target) in _pair_rows(file, columns, named, errors):
            where = f"{file.name}:{number}"
            _refuse_empty(where, "source", source)
            _refuse_empty(where, "target", target)
            found = True
            yield Pair(where, source, target)
        if not found:
            raise DataError(f"{file.name}: no pairs in this file; give lines of a source, a tab and a target, or rows")


def read_parallel(
    source_path: str | Path, target_path: str | Path, *, errors: ErrorPolicy = "strict"
) -> Iterator[Pair]:
    """The pairs of two files of plain text: line n of one with line n of the other. Lines blank in both are no pair.

    Raises:
        DataError: the files have different numbers of lines, a line is blank in one of them, a file is no plain text.
    """
    sources, targets = _plain_file(source_path), _plain_file(target_path)
    number, partnered = 0, 0
    unequal, found = False, False
    for left, right in zip_longest(lines(sources, errors=errors), lines(targets, errors=errors)):
        number += 1
        if left is None or right is None:
            unequal = True
            continue
        partnered = number
        pair = Pair(f"{sources.name}:{number}", left[1].rstrip("\r\n"), right[1].rstrip("\r\n"))
        if pair.source.strip() or pair.target.strip():
            _refuse_empty(pair.where, "source", pair.source)
            _refuse_empty(f"{targets.name}:{number}", "target", pair.target)
            found = True
            yield pair
    if unequal:
        longer, counts = (sources, (number, partnered)) if right is None else (targets, (partnered, number))
        raise DataError(
            f"{longer.name}:{partnered + 1}: no partner: {sources.name} has {_lines(counts[0])}, {targets.name} "
            f"{_lines(counts[1])}; give one target for each source, in the same order"
        )
    if not found:
        raise DataError(f"{sources.name}, {targets.name}: no pairs in these files; give one text a line")


def read_sources(
    path: str | Path,
    *,
    source_column: str | None = None,
    errors: ErrorPolicy = "strict",
    standard_input: Lines | None = None,
) -> Iterator[tuple[str, str]]:
    """Texts to predict from as ("file:line", text), one by one in bounded memory; "-" is standard input, as it comes.

    Rows (.csv, .jsonl, .ndjson, .parquet) give their column "source" or the named one, lines of a .tsv their first
    field; of any other file each line is one text, tabs and all. A blank line of either is an empty text, so that
    line n of the predictions belongs to line n. With a named column all but rows is tab-separated under a header, and
    blank lines are passed over, as between rows.

    standard_input: where its lines come from; by default `sys.stdin` as bytes.

    Raises:
        DataError: the path is missing or empty, there is no text, a row is broken, or not UTF-8.
    """
    for file in [_STANDARD_INPUT] if str(path) == "-" else resolve([path]):
        found = False
        for number, text in _source_rows(file, source_column, errors, standard_input):
            found = True
            yield f"{file.name}:{number}", text
        if not found:
            raise DataError(f"{file.name}: no text to predict from; give one source a line")


def split_by_source(pairs: Sequence[Pair], fraction: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(those to train on, those held out), each in their order: nearly `fraction` of the sources are held out.

    All pairs of one source text are on one side. Which side hangs on a hash of the text and the seed, whatever the
    order of the pairs; at least one source is on either side.

    Raises:
        DataError: the fraction is not between 0 and 1, or there are fewer than two different sources.
    """
    if not 0 < fraction < 1:
        raise DataError(f"data: the held-out fraction must lie between 0 and 1, got {fraction}")
    ranked = sorted({pair.source for pair in pairs}, key=lambda source: (_rank(source, seed), source))
    if len(ranked) < 2:
        raise DataError(
            f"data: expected two different sources or more to hold some out, got {len(ranked)}; "
            "give more pairs or a validation file"
        )
    held_out = frozenset(ranked[: max(1, min(len(ranked) - 1, round(len(ranked) * fraction)))])
    return (
        [pair for pair in pairs if pair.source not in held_out],
        [pair for pair in pairs if pair.source in held_out],
    )


def escaped(text: str) -> str:
    r"""A text on one line and in one field: a line end is \n or \r, a tab \t, all else as it is."""
    return text.replace("\n", r"\n").replace("\r", r"\r").replace("\t", r"\t")


class TextsSource:
    """Texts in memory as a `Source`, each of them a document: to find a vocabulary in one side of pairs, or in both.

    Raises:
        DataError: there is no text.
    """

    def __init__(self, texts: Iterable[str], name: str) -> None:
        self.texts = list(texts)
        self.name = name
        if not self.texts:
            raise DataError(f"{name}: no text to read; give at least one")

    @property
    def size(self) -> int:
        """About how many bytes there are: one for each character."""
        return sum(map(len, self.texts))

    def documents(self) -> Iterator[Document]:
        """The texts in their order; their names are "name:number", from 1."""
        return (_document(f"{self.name}:{number}", text) for number, text in enumerate(self.texts, start=1))

    def fingerprint(self) -> str:
        """A digest of the texts."""
        digest = hashlib.blake2b(digest_size=16)
        for text in self.texts:
            encoded = text.encode("utf-8")
            digest.update(b"%d:" % len(encoded) + encoded)
        return digest.hexdigest()


def _pair_columns(source_column: str | None, target_column: str | None) -> tuple[Column, Column]:
    source = Column(source_column or "source", SOURCE_COLUMN)
    target = Column(target_column or "target", TARGET_COLUMN)
    if source.name == target.name:
        raise DataError(
            f"data: source and target are both column {source.name!r}; "
            f"name two columns with {SOURCE_COLUMN} and {TARGET_COLUMN}"
        )
    return source, target


def _pair_rows(
    file: TextFile, columns: tuple[Column, Column], named: bool, errors: ErrorPolicy
) -> Iterator[tuple[int, tuple[str, ...]]]:
    if file.format != "text":
        return records(file, columns, errors=errors)
    numbered = lines(file, errors=errors)
    return tab_records(numbered, file.name, columns) if named else _two_fields(numbered, file.name)


def _two_fields(numbered: Iterator[tuple[int, str]], name: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    for number, line in numbered:
        fields = tuple(line.rstrip("\r\n").split("\t"))
        if len(fields) == 2:
            yield number, fields
        elif len(fields) > 2:
            raise DataError(
                f"{name}:{number}: expected a source and a target, got {len(fields)} fields; with a header as the "
                f"first line, name two columns by {SOURCE_COLUMN} and {TARGET_COLUMN}"
            )
        elif line.strip():
            raise DataError(
                f"{name}:{number}: expected a source, a tab and a target, got no tab; mend the line, "
                "or give two parallel files with --source and --target"
            )


def _source_rows(
    file: TextFile, source_column: str | None, errors: ErrorPolicy, standard_input: Lines | None
) -> Iterator[tuple[int, str]]:
    column = Column(source_column or "source", SOURCE_COLUMN)
    if file.format != "text":
        return ((number, text) for number, (text,) in records(file, (column,), errors=errors))
    if file is _STANDARD_INPUT:
        incoming = sys.stdin.buffer if standard_input is None else standard_input
        numbered = stream_lines(incoming, file.name, errors=errors)
    else:
        numbered = lines(file, errors=errors)
    if source_column is not None:
        return ((number, text) for number, (text,) in tab_records(numbered, file.name, (column,)))
    texts = ((number, line.rstrip("\r\n")) for number, line in numbered)
    if file.suffix == ".tsv":
        return ((number, text.split("\t", 1)[0]) for number, text in texts)
    return texts


def _plain_file(path: str | Path) -> TextFile:
    files = resolve([path])
    if len(files) > 1:
        raise DataError(f"{path}: expected one file, got {len(files)}; name each of the two parallel files")
    if files[0].format != "text" or files[0].suffix == ".tsv":
        raise DataError(
            f"{files[0].name}: expected a parallel file of plain text, one text a line, got {files[0].suffix}; "
            "give a file of pairs with --data"
        )
    return files[0]


def _refuse_empty(where: str, side: str, text: str) -> None:
    if not text.strip():
        raise DataError(f"{where}: the {side} is empty; write it, or take the pair out")


def _lines(count: int) -> str:
    return f"{count} line" if count == 1 else f"{count} lines"


def _rank(source: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{source}".encode(), digest_size=8).digest()


def _document(name: str, text: str) -> Document:
    return Document(name, lambda: (text[at : at + _PIECE] for at in range(0, len(text), _PIECE)))
