"""Pairs of texts: the same from every format, every fault with its line, and no source on both sides of a split."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from throughtime.data import TextSource, Tokenizer
from throughtime.data.pairs import Pair, TextsSource, escaped, read_pairs, read_parallel, read_sources, split_by_source
from throughtime.errors import DataError

TEXTS = [("AAA", "T R IH P"), ("héllo 😀", '"so", 1'), (" a b ", "NA"), ("x" * 70_000, "null")]


def written(folder: Path, name: str, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder / name


def write_rows(folder: Path, name: str, rows: list[tuple[str, str]], header: tuple[str, str]) -> Path:
    """The rows in the format that the name says; an extra column stands in front."""
    path = folder / name
    if ".jsonl" in name:
        lines = (json.dumps({"id": 0} | dict(zip(header, row, strict=True))) + "\n" for row in rows)
        return written(folder, name, "".join(lines))
    if ".csv" in name:
        stream = io.StringIO()
        csv.writer(stream).writerows([("id", *header), *((0, *row) for row in rows)])
        return written(folder, name, stream.getvalue())
    if ".parquet" in name:
        columns = {"id": [0] * len(rows)} | dict(zip(header, zip(*rows, strict=True), strict=True))
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
        return path
    return written(folder, name, "".join(f"{left}\t{right}\n" for left, right in rows))


def texts(pairs: Iterator[Pair]) -> list[tuple[str, str]]:
    return [(pair.source, pair.target) for pair in pairs]


def fails(expected: str, read: Callable[[], Iterator[object]]) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(expected)}$"):
        list(read())


@pytest.mark.parametrize(
    "name", ["a.tsv", "a.train", "a", "a.tsv.gz", "a.csv", "a.csv.gz", "a.jsonl", "a.ndjson.gz", "a.parquet"]
)
def test_every_format_gives_the_same_pairs(tmp_path: Path, name: str) -> None:
    path = write_rows(tmp_path, name.replace("ndjson", "jsonl"), TEXTS, ("source", "target"))
    path = path.rename(tmp_path / name)
    pairs = list(read_pairs([path]))
    assert texts(iter(pairs)) == TEXTS
    assert pairs[1].where == f"{path}:{3 if '.csv' in name else 2}"


def test_two_parallel_files_give_the_same_pairs(tmp_path: Path) -> None:
    sources = written(tmp_path, "a.src", "".join(f"{source}\n" for source, _ in TEXTS))
    targets = written(tmp_path, "a.tgt.gz", "\r\n".join(target for _, target in TEXTS))
    pairs = list(read_parallel(sources, targets))
    assert texts(iter(pairs)) == TEXTS
    assert [pair.where for pair in pairs] == [f"{sources}:{line}" for line in range(1, 5)]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_columns_are_named(tmp_path: Path, name: str) -> None:
    path = write_rows(tmp_path, name, TEXTS, ("word", "target"))
    assert texts(read_pairs([path], source_column="word")) == TEXTS
    swapped = read_pairs([path], source_column="target", target_column="word")
    assert texts(swapped) == [(right, left) for left, right in TEXTS]


def test_named_columns_make_the_first_line_a_header(tmp_path: Path) -> None:
    path = written(tmp_path, "a.tsv", "id\ttarget\tword\r\n\r\n1\tx y\tA\r\n2\tz\tB\r\n")
    assert list(read_pairs([path], source_column="word")) == [
        Pair(f"{path}:3", "A", "x y"),
        Pair(f"{path}:4", "B", "z"),
    ]


def test_line_ends_marks_and_blank_lines_are_no_text(tmp_path: Path) -> None:
    path = written(tmp_path, "a.tsv", b"\xef\xbb\xbfa\tb\r\n\r\n  \nc\td")
    assert list(read_pairs([path])) == [Pair(f"{path}:1", "a", "b"), Pair(f"{path}:4", "c", "d")]


def test_several_files_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = written(tmp_path, "a.tsv", "a\tb\n"), written(tmp_path, "b.tsv", "c\td\n")
    assert texts(read_pairs([second, first])) == [("c", "d"), ("a", "b")]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"e\tf\n")))
    assert list(read_pairs(["-"])) == [Pair("standard input:1", "e", "f")]


@given(
    st.lists(st.tuples(*[st.text(st.characters(exclude_categories=["Cs", "Cc"])).filter(str.strip)] * 2), min_size=1)
)
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    rows = [(left.removeprefix("\ufeff").strip() or "x", right) for left, right in rows]
    assert texts(read_pairs([write_rows(folder, "a.tsv", rows, ("source", "target"))])) == rows
    assert texts(read_pairs([write_rows(folder, "a.csv", rows, ("source", "target"))])) == rows


def test_faults_of_tab_separated_lines(tmp_path: Path) -> None:
    def of(content: str | bytes, **options: str) -> Callable[[], Iterator[Pair]]:
        return lambda: read_pairs([written(tmp_path, "a.tsv", content)], **options)  # type: ignore[arg-type]

    path = tmp_path / "a.tsv"
    fails(
        f"{path}:2: expected a source, a tab and a target, got no tab; mend the line, "
        "or give two parallel files with --source and --target",
        of("a\tb\nc d\n"),
    )
    fails(f"{path}:2: the source is empty; write it, or take the pair out", of("a\tb\n \td\n"))
    fails(f"{path}:1: the target is empty; write it, or take the pair out", of("a\t\n"))
    fails(f"{path}:1: the source is empty; write it, or take the pair out", of("\t\n"))
    fails(
        f"{path}:1: expected a source and a target, got 3 fields; with a header as the first line, "
        "name two columns by --source-column and --target-column",
        of("a\tb\tc\n"),
    )
    fails(
        f"{path}:1: no column 'target'; the columns there: word, phones; choose one with --target-column",
        of("word\tphones\na\tb\n", source_column="word"),
    )
    fails(
        f"{path}:3: broken row: expected 2 fields as in the header, got 1; a tab stands between two fields and in none",
        of("word\ttarget\na\tb\nc\n", source_column="word"),
    )
    fails(
        "data: source and target are both column 'target'; name two columns with --source-column and --target-column",
        of("a\tb\n", source_column="target"),
    )
    fails(
        f"{path}: line 2, byte 6: not UTF-8 (0xe9); "
        "convert the file, or --errors replace goes on with U+FFFD in such places",
        of(b"a\tb\nc\t\xe9\n"),
    )
    assert texts(of(b"c\t\xe9\n", errors="replace")()) == [("c", "\ufffd")]


def test_files_without_pairs(tmp_path: Path) -> None:
    empty, blank = written(tmp_path, "a.tsv", ""), written(tmp_path, "b.tsv", "\n \n")
    header = written(tmp_path, "c.csv", "source,target\n")
    fails(f"{empty}: the file is empty; give a file with text in it", lambda: read_pairs([empty]))
    remedy = "no pairs in this file; give lines of a source, a tab and a target, or rows"
    fails(f"{blank}: {remedy}", lambda: read_pairs([blank]))
    fails(f"{header}: {remedy}", lambda: read_pairs([header]))


def test_faults_of_rows(tmp_path: Path) -> None:
    rows = written(tmp_path, "a.jsonl", '{"source": "a", "target": "b"}\n{"source": "a"}\n')
    fails(
        f"{rows}:2: no column 'target'; the columns there: source; choose one with --target-column",
        lambda: read_pairs([rows]),
    )
    rows = written(tmp_path, "a.jsonl", '{"source": "a", "target": null}\n')
    fails(
        f"{rows}:1: column 'target' must hold text, got nothing (null); choose another with --target-column",
        lambda: read_pairs([rows]),
    )
    rows = written(tmp_path, "a.jsonl", "[1]\n")
    fails(
        f"{rows}:1: expected a JSON object with the columns 'source' and 'target', got a list",
        lambda: read_pairs([rows]),
    )
    rows = written(tmp_path, "a.csv", "source,words\na,b\n")
    fails(
        f"{rows}:1: no column 'target'; the columns there: source, words; choose one with --target-column",
        lambda: read_pairs([rows]),
    )
    rows = written(tmp_path, "b.csv", "source,target\na,b\n\nc,\n")
    fails(f"{rows}:4: the target is empty; write it, or take the pair out", lambda: read_pairs([rows]))
    table = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"source": ["a", "b"], "target": ["c", ""]}), table)
    fails(f"{table}:2: the target is empty; write it, or take the pair out", lambda: read_pairs([table]))


def test_faults_of_parallel_files(tmp_path: Path) -> None:
    def of(left: str, right: str) -> Callable[[], Iterator[Pair]]:
        return lambda: read_parallel(written(tmp_path, "a", left), written(tmp_path, "b", right))

    a, b = tmp_path / "a", tmp_path / "b"
    remedy = "give one target for each source, in the same order"
    fails(f"{a}:2: no partner: {a} has 4 lines, {b} 1 line; {remedy}", of("1\n2\n3\n4\n", "1\n"))
    fails(f"{b}:3: no partner: {a} has 2 lines, {b} 3 lines; {remedy}", of("1\n2\n", "1\n2\n3"))
    fails(f"{a}:2: the source is empty; write it, or take the pair out", of("1\n\n", "1\n2\n"))
    fails(f"{b}:1: the target is empty; write it, or take the pair out", of("1\n", " \n"))
    fails(f"{a}, {b}: no pairs in these files; give one text a line", of("\n\n", "\n\n"))
    assert texts(of("1\n\n3\n", "x\n\nz\n")()) == [("1", "x"), ("3", "z")]
    for name in ("c.csv", "c.tsv.gz"):
        rows = written(tmp_path, name, "a\tb\n")
        fails(
            f"{rows}: expected a parallel file of plain text, one text a line, got {'.' + name.split('.')[1]}; "
            "give a file of pairs with --data",
            lambda rows=rows: read_parallel(rows, b),  # type: ignore[misc]
        )
    folder = tmp_path / "folder"
    folder.mkdir()
    written(folder, "a.txt", "1\n")
    written(folder, "b.txt", "1\n")
    fails(f"{folder}: expected one file, got 2; name each of the two parallel files", lambda: read_parallel(folder, b))


def test_sources_of_every_format(tmp_path: Path) -> None:
    plain = written(tmp_path, "a.txt", "one\r\n\ntwo\twith a tab")
    assert list(read_sources(plain)) == [(f"{plain}:1", "one"), (f"{plain}:2", ""), (f"{plain}:3", "two\twith a tab")]
    tabs = written(tmp_path, "a.tsv.gz", "one\tx\n\n  \ntwo\nthree\ty\tz\n")
    texts_of_lines = ["one", "", "  ", "two", "three"]
    assert list(read_sources(tabs)) == [(f"{tabs}:{line}", text) for line, text in enumerate(texts_of_lines, start=1)]
    for name in ("b.csv", "b.jsonl", "b.parquet"):
        rows = write_rows(tmp_path, name, TEXTS, ("source", "target"))
        assert [text for _, text in read_sources(rows)] == [source for source, _ in TEXTS]
        assert [text for _, text in read_sources(rows, source_column="target")] == [target for _, target in TEXTS]
    for name in ("c.tsv", "c.txt"):
        named = written(tmp_path, name, "id\tword\n1\ta\n2\tb\n")
        assert list(read_sources(named, source_column="word")) == [(f"{named}:2", "a"), (f"{named}:3", "b")]


class Endless(io.RawIOBase):
    """Standard input that is still being written: it counts the lines that are taken."""

    def __init__(self) -> None:
        self.read_lines = 0

    def readline(self, size: int | None = -1, /) -> bytes:
        self.read_lines += 1
        return b"line %d\n" % self.read_lines


def test_sources_come_from_standard_input_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Endless()
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"buffer": stream}))
    sources = read_sources("-")
    assert list(itertools.islice(sources, 3)) == [(f"standard input:{n}", f"line {n}") for n in (1, 2, 3)]
    assert stream.read_lines == 3


def test_faults_of_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(content: bytes, **options: str) -> Callable[[], Iterator[tuple[str, str]]]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        return lambda: read_sources("-", **options)  # type: ignore[arg-type]

    fails("standard input: no text to predict from; give one source a line", of(b""))
    fails(
        "standard input: line 2, byte 3: not UTF-8 (0xff); "
        "convert the file, or --errors replace goes on with U+FFFD in such places",
        of(b"a\nb\xff\n"),
    )
    fails("standard input: a binary file (a NUL byte at byte 3); give files of UTF-8 text", of(b"a\nb\0\n"))
    fails(
        "standard input:1: no column 'word'; the columns there: a, b; choose one with --source-column",
        of(b"a\tb\n", source_column="word"),
    )
    with pytest.raises(DataError, match="no such file or folder"):
        list(read_sources(tmp_path / "missing.txt"))


def numbered(sources: list[str]) -> list[Pair]:
    return [Pair(f"a:{line}", source, str(line)) for line, source in enumerate(sources, start=1)]


@given(st.lists(st.text(max_size=2), min_size=2).filter(lambda sources: len(set(sources)) > 1), st.integers(0, 9))
def test_no_source_is_on_both_sides(sources: list[str], seed: int) -> None:
    pairs = numbered(sources)
    train, held_out = split_by_source(pairs, 0.3, seed)
    assert not {pair.source for pair in train} & {pair.source for pair in held_out}
    assert sorted([*train, *held_out]) == sorted(pairs)
    assert train
    assert held_out
    assert (train, held_out) == split_by_source(pairs, 0.3, seed)


def test_a_split_hangs_on_its_fraction_and_seed_alone() -> None:
    pairs = numbered([str(number % 1000) for number in range(3000)])
    _, held_out = split_by_source(pairs, 0.05, 1)
    assert len(held_out) == 150
    assert [pair for pair in pairs if pair in set(held_out)] == held_out
    assert set(split_by_source(pairs[::-1], 0.05, 1)[1]) == set(held_out)
    assert set(split_by_source(pairs, 0.05, 2)[1]) != set(held_out)
    assert set(split_by_source(pairs, 0.1, 1)[1]) > set(held_out)


def test_what_cannot_be_split() -> None:
    fails(
        "data: expected two different sources or more to hold some out, got 1; give more pairs or a validation file",
        lambda: iter(split_by_source(numbered(["a", "a"]), 0.1, 0)),
    )
    fails(
        "data: the held-out fraction must lie between 0 and 1, got 1.0",
        lambda: iter(split_by_source(numbered(["a", "b"]), 1.0, 0)),
    )


def test_a_text_on_one_line_and_in_one_field() -> None:
    assert escaped("é\t→\r\n\\x") == r"é\t→\r\n\x"


def test_texts_are_documents(tmp_path: Path) -> None:
    source = TextsSource(iter(["one", "x" * 300_000]), "sources")
    documents = list(source.documents())
    assert [document.name for document in documents] == ["sources:1", "sources:2"]
    assert ["".join(document.chunks()) for document in documents] == ["one", "x" * 300_000]
    assert max(len(chunk) for chunk in documents[1].chunks()) < 300_000
    assert source.size == 300_003
    assert TextsSource(["ab", "c"], "a").fingerprint() == TextsSource(["ab", "c"], "b").fingerprint()
    assert TextsSource(["ab", "c"], "a").fingerprint() != TextsSource(["a", "bc"], "a").fingerprint()
    fails("targets: no text to read; give at least one", lambda: TextsSource([], "targets").documents())


@pytest.mark.parametrize("kind", ["chars", "words", "bpe"])
def test_a_vocabulary_of_texts_is_that_of_rows(tmp_path: Path, kind: str) -> None:
    rows = ["the cat", "cat", "dog and\nthe dog"]
    path = written(tmp_path, "a.jsonl", "".join(json.dumps({"text": row}) + "\n" for row in rows))
    ours, theirs = (Tokenizer.train(kind, source) for source in (TextsSource(rows, "a"), TextSource([path])))
    assert ours.to_json() == theirs.to_json()
    assert (" " in ours.codec.vocabulary) == (kind == "chars")


def test_standard_input_may_be_handed_in() -> None:
    given = io.BytesIO(b"id\tsource\n1\tab\n2\tc\n")
    found = list(read_sources("-", source_column="source", standard_input=given))
    assert found == [("standard input:2", "ab"), ("standard input:3", "c")]
