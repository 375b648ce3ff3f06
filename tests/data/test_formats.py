"""Reading files: every format round trips, and every fault names the file, the line and the remedy."""

from __future__ import annotations

import csv
import gzip
import json
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from throughtime.data import formats
from throughtime.data.formats import TextFile, rows, text_chunks, text_size
from throughtime.errors import DataError

AWKWARD = ["NA", "null", "", "a\nb", 'say "yes", or no', "héllo 😀", "  spaces  ", "1", "x" * 200_000]


def file_of(folder: Path, name: str, content: str | bytes) -> TextFile:
    path = folder / name
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return TextFile(path, name)


def read(file: TextFile, **options: object) -> str:
    return "".join(text_chunks(file, errors="strict", **options))  # type: ignore[arg-type]


def texts(file: TextFile, column: str | None = None, errors: formats.ErrorPolicy = "strict") -> list[str]:
    return [text for _, text in rows(file, column=column, errors=errors)]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_text_comes_as_it_is(tmp_path: Path, suffix: str) -> None:
    content = "one\r\ntwo\rthree\n\né 😀"
    file = file_of(tmp_path, f"a.txt{suffix}", content)
    assert read(file) == content
    assert text_size(file) == len(content.encode())


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_text_between_two_offsets(tmp_path: Path, suffix: str) -> None:
    file = file_of(tmp_path, f"a.txt{suffix}", "abcdefgh")
    assert read(file, start=2, stop=5) == "cde"
    assert read(file, start=5) == "fgh"


@given(text=st.text(), size=st.integers(1, 9))
def test_characters_survive_the_edges_of_blocks(tmp_path_factory: pytest.TempPathFactory, text: str, size: int) -> None:
    text = "é" + text.replace("\0", "")
    file = file_of(tmp_path_factory.mktemp("blocks"), "a.txt", text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "CHUNK_BYTES", size)
        assert read(file) == text


def test_pieces_are_small(tmp_path: Path) -> None:
    file = file_of(tmp_path, "a.txt", "é" * 2_000_000)
    pieces = list(text_chunks(file, errors="strict"))
    assert max(len(piece.encode()) for piece in pieces) <= 1 << 20
    assert sum(map(len, pieces)) == 2_000_000


def test_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    assert read(file_of(tmp_path, "a.txt", b"\xef\xbb\xbfabc")) == "abc"
    assert texts(file_of(tmp_path, "a.csv", b"\xef\xbb\xbftext\nabc\n")) == ["abc"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_jsonl_and_csv_swallow_no_row(tmp_path: Path, suffix: str) -> None:
    lines = "\n".join(json.dumps({"id": index, "text": text}) for index, text in enumerate(AWKWARD))
    assert texts(file_of(tmp_path, f"a.jsonl{suffix}", lines)) == AWKWARD
    with open(tmp_path / "b.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "text"])
        writer.writerows(enumerate(AWKWARD))
    assert texts(file_of(tmp_path, f"a.csv{suffix}", (tmp_path / "b.csv").read_bytes())) == AWKWARD


def test_parquet_swallows_no_row(tmp_path: Path) -> None:
    table = pyarrow.table({"n": list(range(900)), "text": (AWKWARD * 100)[:900]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    assert texts(TextFile(tmp_path / "a.parquet", "a.parquet")) == (AWKWARD * 100)[:900]


def test_a_column_can_be_chosen(tmp_path: Path) -> None:
    assert texts(file_of(tmp_path, "a.jsonl", '{"body": "x", "text": "y"}'), column="body") == ["x"]


def test_blank_lines_between_rows_are_passed_over(tmp_path: Path) -> None:
    file = file_of(tmp_path, "a.jsonl", '{"text": "a"}\n\n{"text": "b"}\n\n')
    assert list(rows(file, column=None, errors="strict")) == [(1, "a"), (3, "b")]
    file = file_of(tmp_path, "a.csv", '\ntext\n\na\n"b\nc"\nd\n')
    assert list(rows(file, column=None, errors="strict")) == [(4, "a"), (5, "b\nc"), (7, "d")]


def fails(expected: str, file: TextFile, **options: object) -> None:
    reader = read if file.format == "text" else texts
    with pytest.raises(DataError, match=f"^{re.escape(expected)}$"):
        reader(file, **options)  # type: ignore[operator]


def test_not_utf8_names_line_and_byte(tmp_path: Path) -> None:
    remedy = "convert the file, or --errors replace goes on with U+FFFD in such places"
    fails(f"a.txt: line 2, byte 6: not UTF-8 (0xe9); {remedy}", file_of(tmp_path, "a.txt", b"abc\nde\xe9fg\n"))
    fails(
        f"a.jsonl: line 2, byte 24: not UTF-8 (0xff); {remedy}",
        file_of(tmp_path, "a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n'),
    )
    fails(f"b.txt: line 1, byte 3: not UTF-8 (0xc3); {remedy}", file_of(tmp_path, "b.txt", b"abc\xc3"))


def test_not_utf8_far_into_a_file(tmp_path: Path) -> None:
    lines = b"x" * 99 + b"\n"
    file = file_of(tmp_path, "a.txt", lines * 20_000 + b"ab\x80")
    with pytest.raises(DataError, match=r"a\.txt: line 20001, byte 2000002: not UTF-8 \(0x80\)"):
        read(file)


def test_errors_replace_goes_on(tmp_path: Path) -> None:
    file = file_of(tmp_path, "a.txt", b"a\xffb")
    assert "".join(text_chunks(file, errors="replace")) == "a�b"
    file = file_of(tmp_path, "a.csv", b"text\na\xffb\n")
    assert texts(file, errors="replace") == ["a�b"]
    file = file_of(tmp_path, "a.jsonl", '{"text": "a\\ud800b \\ud83d\\ude00"}')
    assert texts(file, errors="replace") == ["a�b 😀"]


def test_binary_files_are_refused(tmp_path: Path) -> None:
    refused = "a binary file (a NUL byte at byte 2); give files of UTF-8 text"
    fails(f"a.txt: {refused}", file_of(tmp_path, "a.txt", b"ab\0cd"))
    fails(f"a.jsonl: {refused}", file_of(tmp_path, "a.jsonl", b"ab\0cd"))
    fails(
        "b.txt: this is UTF-16 text; convert it first: iconv -f UTF-16 -t UTF-8",
        file_of(tmp_path, "b.txt", "ab".encode("utf-16")),
    )


def test_broken_gzip(tmp_path: Path) -> None:
    packed = gzip.compress(b"abc\n" * 1000)
    path = tmp_path / "a.txt.gz"
    path.write_bytes(packed[:-12])
    fails("a.gz: the gzip stream ends too early; fetch the file again or pack it again", TextFile(path, "a.gz"))
    path.write_bytes(b"plain text")
    with pytest.raises(
        DataError, match=r"^a\.gz: not a sound gzip file \(Not a gzipped file.*\); fetch the file again"
    ):
        read(TextFile(path, "a.gz"))
    path.write_bytes(packed[:15] + b"\xff\xff\xff" + packed[18:])
    with pytest.raises(DataError, match=r"^a\.gz: not a sound gzip file"):
        read(TextFile(path, "a.gz"))


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^d: cannot be read: Is a directory; check the path and its permissions$"):
        read(TextFile(tmp_path, "d"))


def test_broken_jsonl_rows(tmp_path: Path) -> None:
    good = '{"text": "a"}\n'
    fails(
        "a.jsonl:2: not JSON: Expecting ',' delimiter at character 14; each line must be one JSON object",
        file_of(tmp_path, "a.jsonl", good + '{"text": "b" "c"}'),
    )
    fails(
        "a.jsonl:2: expected a JSON object with a column 'text', got a list",
        file_of(tmp_path, "a.jsonl", good + '["a"]'),
    )
    fails(
        "a.jsonl:2: no column 'text'; the columns there: body, id; choose one with --column",
        file_of(tmp_path, "a.jsonl", good + '{"body": "b", "id": 1}'),
    )
    fails(
        "a.jsonl:1: column 'text' must hold text, got nothing (null); choose another with --column",
        file_of(tmp_path, "a.jsonl", '{"text": null}'),
    )
    fails(
        "a.jsonl:1: half a surrogate pair (\\ud800) is no character; "
        "mend the row, or --errors replace goes on with U+FFFD in such places",
        file_of(tmp_path, "a.jsonl", '{"text": "a\\ud800"}'),
    )
    with pytest.raises(DataError, match=r"^a\.jsonl:1: not JSON: .*recursion.*; each line must be one JSON object"):
        texts(file_of(tmp_path, "a.jsonl", "[" * 200_000))


def test_broken_csv_rows(tmp_path: Path) -> None:
    fails(
        "a.csv:3: broken row: expected 2 fields as in the header, got 3; a field with commas or line ends needs quotes",
        file_of(tmp_path, "a.csv", "id,text\n1,a\n2,b,c\n"),
    )
    fails(
        'a.csv:2: broken row: unexpected end of data; close its quotes and write " inside as ""',
        file_of(tmp_path, "a.csv", 'text\n"never closed\n'),
    )
    fails(
        "a.csv:1: no column 'text'; the columns there: id, body; choose one with --column",
        file_of(tmp_path, "a.csv", "id,body\n1,a\n"),
    )


def test_broken_parquet(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), tmp_path / "a.parquet")
    file = TextFile(tmp_path / "a.parquet", "a.parquet")
    fails("a.parquet:1: column 'text' must hold text, got a number; choose another with --column", file)
    fails("a.parquet: no column 'b'; the columns there: text; choose one with --column", file, column="b")
    fails(
        "a.parquet.gz: Parquet is compressed by itself and cannot be read through gzip; unpack it first",
        file_of(tmp_path, "a.parquet.gz", b"PAR1"),
    )
    with pytest.raises(DataError, match=r"^b\.parquet: not a sound Parquet file \(.*\); write or fetch it again$"):
        texts(file_of(tmp_path, "b.parquet", b"PAR1 nothing of the kind"))


def test_a_row_without_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "LINE_LIMIT", 100)
    with pytest.raises(DataError, match=r"^a\.jsonl:2: a row of more than 0 MiB; split it into several rows$"):
        texts(file_of(tmp_path, "a.jsonl", '{"text": "a"}\n' + "x" * 101))
