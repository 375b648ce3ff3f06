"""Prepared texts: the stream's form, the cache, and what a kill or a full disk leaves."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from throughtime.data import TextSource, TokenFile, Tokenizer, prepare, tokens
from throughtime.errors import DataError, StorageError


@pytest.fixture
def source(tmp_path: Path) -> TextSource:
    (tmp_path / "a.jsonl").write_text('{"text": "héy"}\n{"text": ""}\n{"text": "you"}\n')
    return TextSource([tmp_path / "a.jsonl"])


def folders(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "tokens").iterdir() if path.suffix != ".lock")


def test_borders_open_documents_and_close_the_stream(source: TextSource, tmp_path: Path) -> None:
    prepared = prepare(source, Tokenizer.train("bytes"), cache=tmp_path)
    expected = [256, *"héy".encode(), 256, 256, *b"you", 256]
    assert prepared.tokens[:].tolist() == expected
    assert prepared.tokens.dtype == np.uint16
    assert prepared.document_starts.tolist() == [0, 5, 6]
    assert (prepared.n_documents, prepared.bytes, prepared.characters, prepared.border_id) == (3, 7, 6, 256)


def test_shards_read_as_one(source: TextSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "SHARD_TOKENS", 3)
    monkeypatch.setattr(tokens, "_FLUSH", 2)
    monkeypatch.setattr(tokens, "_RESIDENT", 4)
    prepared = prepare(source, Tokenizer.train("bytes"), cache=tmp_path)
    assert len(list(prepared.folder.glob("shard-*.bin"))) == 4
    whole = [256, *"héy".encode(), 256, 256, *b"you", 256]
    assert len(prepared.tokens) == len(whole)
    for start in range(-2, 12):
        for stop in range(-2, 12):
            assert prepared.tokens[start:stop].tolist() == whole[start:stop]
    assert [prepared.tokens[index] for index in range(-11, 11)] == whole * 2
    assert prepared.document_starts.tolist() == [0, 5, 6]
    with pytest.raises(IndexError, match="range object index out of range"):
        prepared.tokens[11]
    with pytest.raises(IndexError, match=r"^ShardedTokens: slices have no step$"):
        prepared.tokens[::2]


@given(texts=st.lists(st.text(), min_size=1, max_size=5))
def test_any_rows_are_kept(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("rows")
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = Tokenizer.train("bytes")
    prepared = prepare(TextSource([folder / "a.jsonl"]), tokenizer, cache=folder)
    starts = [*prepared.document_starts.tolist(), len(prepared.tokens) - 1]
    found = [tokenizer.decode(prepared.tokens[a + 1 : b]) for a, b in pairwise(starts)]
    assert found == texts
    assert prepared.bytes == sum(len(text.encode()) for text in texts)
    assert prepared.characters == sum(map(len, texts))


def test_the_second_start_reads_no_text(source: TextSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(source, Tokenizer.train("bytes"), cache=tmp_path)

    def refuse(self: TextSource) -> None:
        raise AssertionError("the text is read again")

    monkeypatch.setattr(TextSource, "documents", refuse)
    second = prepare(source, Tokenizer.train("bytes"), cache=tmp_path)
    assert second.folder == first.folder
    assert second.tokens[:].tolist() == first.tokens[:].tolist()


def test_another_text_or_vocabulary_is_prepared_anew(source: TextSource, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    prepare(source, Tokenizer.train("bytes"), cache=cache)
    prepare(source, Tokenizer.train("chars", source), cache=cache)
    (tmp_path / "a.jsonl").write_text('{"text": "other"}\n')
    prepare(source, Tokenizer.train("bytes"), cache=cache)
    assert len(folders(cache)) == 3


def test_the_cache_is_where_the_environment_says(
    source: TextSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THROUGHTIME_CACHE", str(tmp_path / "mine"))
    assert prepare(source, Tokenizer.train("bytes")).folder.is_relative_to(tmp_path / "mine")
    monkeypatch.delenv("THROUGHTIME_CACHE")
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name, appauthor: str(tmp_path / name))
    assert prepare(source, Tokenizer.train("bytes")).folder.is_relative_to(tmp_path / "throughtime")


def test_progress_ends_at_the_whole(source: TextSource, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    prepare(source, Tokenizer.train("bytes"), cache=tmp_path, progress=lambda done, size: told.append((done, size)))
    assert told == [(4, source.size), (7, source.size), (source.size, source.size)]


def test_a_fault_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": 1}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: column 'text' must hold text, got a number"):
        prepare(TextSource([tmp_path / "a.jsonl"]), Tokenizer.train("bytes"), cache=tmp_path)
    assert folders(tmp_path) == []


KILLED = """
import os, sys
from pathlib import Path
from throughtime.data import TextSource, Tokenizer, prepare
def die(done, size):
    os._exit(9)
prepare(TextSource([sys.argv[1]]), Tokenizer.train("bytes"), cache=Path(sys.argv[2]), progress=die)
"""


def test_a_kill_leaves_no_half_text(source: TextSource, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    code = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a.jsonl"), str(cache)], check=False).returncode
    assert code == 9
    (left,) = folders(cache)
    assert left.endswith(".partial")
    prepared = prepare(source, Tokenizer.train("bytes"), cache=cache)
    assert prepared.n_documents == 3
    assert folders(cache) == [prepared.folder.name]


def test_two_at_once_prepare_it_once(source: TextSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    write = tokens._write

    def slow_write(source: TextSource, tokenizer: Tokenizer, folder: Path, progress: tokens.Progress | None) -> None:
        written.append(folder)
        time.sleep(0.2)
        write(source, tokenizer, folder, progress)

    monkeypatch.setattr(tokens, "_write", slow_write)
    threads = [
        threading.Thread(target=prepare, args=(source, Tokenizer.train("bytes")), kwargs={"cache": tmp_path})
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) == 1


def test_a_full_disk(source: TextSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, ids: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tokens._Writer, "write", full)
    with pytest.raises(StorageError, match=r"^cannot write .*: No space left on device; the disk is full; free some"):
        prepare(source, Tokenizer.train("bytes"), cache=tmp_path)
    assert folders(tmp_path) == []


def test_a_cache_that_is_no_folder(source: TextSource, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"^cannot write .*: Not a directory; a part of that path is a file"):
        prepare(source, Tokenizer.train("bytes"), cache=tmp_path / "file")


@pytest.mark.parametrize("name", ["meta.json", "shard-00000.bin", "documents.bin"])
def test_a_damaged_cache(source: TextSource, tmp_path: Path, name: str) -> None:
    prepared = prepare(source, Tokenizer.train("bytes"), cache=tmp_path)
    content = (prepared.folder / name).read_bytes()
    (prepared.folder / name).write_bytes(content[: len(content) // 2])
    expected = f"{prepared.folder}: damaged prepared text ("
    with pytest.raises(StorageError, match=f"^{re.escape(expected)}.*remove the folder, it is made again$"):
        TokenFile(prepared.folder)
