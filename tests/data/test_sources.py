"""Documents, splits that share no text, and fingerprints of content."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from throughtime.data import TextSource, sources
from throughtime.data.formats import TextFile
from throughtime.data.splits import held_out_files, tail_start
from throughtime.errors import DataError


def contents(source: TextSource) -> dict[str, str]:
    return {document.name: "".join(document.chunks()) for document in source.documents()}


def parts(path: Path, **options: object) -> tuple[dict[str, str], dict[str, str]]:
    train, valid = (TextSource([path], split=split, **options) for split in ("train", "valid"))  # type: ignore[arg-type]
    return contents(train), contents(valid)


def test_files_and_rows_are_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("alpha")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "c.csv").write_text('text\n"x\ny"\nz\n')
    assert contents(TextSource([tmp_path])) == {
        f"{tmp_path}/a.txt": "alpha",
        f"{tmp_path}/b.jsonl:1": "one",
        f"{tmp_path}/b.jsonl:2": "two",
        f"{tmp_path}/c.csv:2": "x\ny",
        f"{tmp_path}/c.csv:4": "z",
    }


def test_a_long_row_comes_in_small_pieces(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "é" * 1_000_000}))
    (document,) = TextSource([tmp_path / "a.jsonl"]).documents()
    pieces = list(document.chunks())
    assert "".join(pieces) == "é" * 1_000_000 == "".join(document.chunks())
    assert max(len(piece.encode()) for piece in pieces) <= 1 << 20


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_few_files_are_cut_at_a_line_near_their_end(tmp_path: Path, suffix: str) -> None:
    text = "".join(f"line {number}\n" for number in range(1000))
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix else text.encode())
    ((train,), (valid,)) = (part.values() for part in parts(path))
    assert train + valid == text
    assert train.endswith("\n")
    assert len(valid) / len(text) == pytest.approx(0.05, abs=0.002)


@given(text=st.text(min_size=2).filter(lambda text: "\0" not in text), fraction=st.floats(0.01, 0.99))
def test_the_two_parts_of_a_file_are_the_file(
    tmp_path_factory: pytest.TempPathFactory, text: str, fraction: float
) -> None:
    path = tmp_path_factory.mktemp("tail") / "a.txt"
    path.write_bytes(text.encode())
    cut = tail_start(TextFile(path, "a.txt"), fraction)
    content = path.read_bytes()
    assert content[:cut].decode() + content[cut:].decode() == text


def test_a_file_of_one_line_is_cut_between_characters(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("é" * 99)
    ((train,), (valid,)) = (part.values() for part in parts(tmp_path / "a.txt"))
    assert train + valid == "é" * 99
    assert 4 <= len(valid) <= 6


def test_a_last_line_longer_than_the_fraction_is_held_out_whole(tmp_path: Path) -> None:
    text = "word\n" * 80 + "x" * 100
    (tmp_path / "a.txt").write_text(text)
    ((train,), (valid,)) = (part.values() for part in parts(tmp_path / "a.txt"))
    assert (train, valid) == ("word\n" * 80, "x" * 100)


@pytest.mark.parametrize("count", [20, 21, 100])
def test_many_files_are_held_out_whole(tmp_path: Path, count: int) -> None:
    for number in range(count):
        (tmp_path / f"{number:03}.txt").write_text(f"file {number}")
    train, valid = parts(tmp_path)
    assert {**train, **valid} == contents(TextSource([tmp_path]))
    assert not train.keys() & valid.keys()
    assert len(valid) == max(1, round(0.05 * count))
    assert parts(tmp_path) == (train, valid)
    assert parts(tmp_path, seed=1)[1] != valid


def test_at_least_one_file_on_either_side() -> None:
    assert len(held_out_files(20, 0.001, 0)) == 1
    assert len(held_out_files(20, 0.999, 0)) == 19


@pytest.mark.parametrize(("count", "fraction"), [(2, 0.05), (3, 0.9), (10, 0.05), (2000, 0.05), (2000, 0.3)])
def test_rows_are_held_out_whole(tmp_path: Path, count: int, fraction: float) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(count)))
    train, valid = parts(path, valid_fraction=fraction)
    assert {**train, **valid} == contents(TextSource([path]))
    assert not train.keys() & valid.keys()
    assert train
    assert valid
    assert len(valid) / count == pytest.approx(fraction, abs=1 / count + 3 * (fraction * (1 - fraction) / count) ** 0.5)


def test_one_row_cannot_be_split(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match=r"^data: one row cannot be both trained on and held out; give more rows or a "):
        parts(tmp_path / "a.jsonl")


def test_a_text_too_short_to_split(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError, match=r"^.*a\.txt: no text to read \(split 'train'\); give more text$"):
        parts(tmp_path / "a.txt")


def test_rows_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n")
    with pytest.raises(DataError, match=r"^.*a\.csv: no text to read \(split 'all'\); give more text$"):
        contents(TextSource([tmp_path / "a.csv"]))


def test_the_fraction_is_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data: the held-out fraction must lie between 0 and 1, got 1.5$"):
        TextSource([tmp_path], valid_fraction=1.5)


def test_the_size_is_about_that_of_the_part(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 1000)
    sizes = [TextSource([tmp_path], split=split).size for split in ("all", "train", "valid")]  # type: ignore[arg-type]
    assert sizes == [1000, 950, 50]


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    path, copy = tmp_path / "a.csv", tmp_path / "b.csv"
    path.write_text("text,other\na,b\n")
    copy.write_text("text,other\na,b\n")
    one = TextSource([path]).fingerprint()
    assert one == TextSource([path]).fingerprint() == TextSource([copy]).fingerprint()
    others = [
        TextSource([path], column="other").fingerprint(),
        TextSource([path], errors="replace").fingerprint(),
        TextSource([path], split="train").fingerprint(),
        TextSource([path], split="train", seed=1).fingerprint(),
        TextSource([path], split="train", valid_fraction=0.1).fingerprint(),
        TextSource([path, copy]).fingerprint(),
    ]
    path.write_text("text,other\na,c\n")
    others.append(TextSource([path]).fingerprint())
    path.rename(tmp_path / "a.txt")
    others.append(TextSource([tmp_path / "a.txt"]).fingerprint())
    assert len({one, *others}) == 9


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old enough to be remembered")
    os.utime(path, (1e9, 1e9))
    fingerprint = TextSource([path]).fingerprint()

    def refuse(file: TextFile) -> bytes:
        raise AssertionError(f"{file.name} is read again")

    monkeypatch.setattr(sources, "_file_digest", refuse)
    assert TextSource([path]).fingerprint() == fingerprint
    path.write_text("old enough to be REMEMBERED")
    os.utime(path, (1e9 + 1, 1e9 + 1))
    with pytest.raises(AssertionError, match="is read again"):
        TextSource([path]).fingerprint()


def test_a_file_just_written_is_not_trusted_by_its_time(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    stat = path.stat()
    first = TextSource([path]).fingerprint()
    path.write_text("two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert TextSource([path]).fingerprint() != first
