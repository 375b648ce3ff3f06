"""What a user names becomes a list of files, or one line that says why not."""

from __future__ import annotations

import gzip
import io
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from throughtime.data import stdlib_files
from throughtime.data.paths import resolve
from throughtime.errors import DataError, StorageError


def names(folder: Path, *paths: str | Path) -> list[str]:
    return [str(file.path.relative_to(folder)) for file in resolve(paths)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.txt", "a.md", "deep/c.py", "deep/d.bin", ".hidden/e.txt", ".f.txt", "empty.txt", "g.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("" if name == "empty.txt" else name)
    (tmp_path / "h.txt.gz").write_bytes(gzip.compress(b"h"))
    return tmp_path


def test_a_folder_gives_its_texts_sorted(folder: Path) -> None:
    assert names(folder, folder) == ["a.md", "b.txt", "g.jsonl", "h.txt.gz", "deep/c.py"]


def test_a_file_named_outright_is_taken_whatever_its_suffix(folder: Path) -> None:
    assert names(folder, folder / "deep/d.bin", str(folder / ".f.txt")) == ["deep/d.bin", ".f.txt"]


def test_globs(folder: Path) -> None:
    assert names(folder, f"{folder}/*.txt") == ["b.txt"]
    assert names(folder, f"{folder}/**/*.py") == ["deep/c.py"]
    (folder / "[x].txt").write_text("x")
    assert names(folder, f"{folder}/[x].txt") == ["[x].txt"]


def test_faults_say_where_and_what_to_do(folder: Path) -> None:
    def fails(path: str | Path, expected: str) -> None:
        with pytest.raises(DataError, match=f"^{re.escape(expected)}$"):
            resolve([path])

    fails(folder / "b.tx", f"{folder}/b.tx: no such file or folder; did you mean {folder}/b.txt?")
    fails(folder / "dep/c.py", f"{folder}/dep: no such file or folder; did you mean {folder}/deep?")
    fails(folder / "zzzzzzzz", f"{folder}/zzzzzzzz: no such file or folder; check the path")
    fails(folder / "*.rs", f"{folder}/*.rs: the pattern matches no file with text in it; check it, or name a folder")
    fails(folder / "empty.txt", f"{folder}/empty.txt: the file is empty; give a file with text in it")
    (folder / "none").mkdir()
    fails(
        folder / "none",
        f"{folder}/none: no text in this folder; taken are files such as .txt, .md, .py, .jsonl, .csv, .parquet, "
        ".txt.gz: name others outright, or by a glob",
    )
    with pytest.raises(DataError, match=r"^data: no path given; name files, folders, globs, or - for standard input$"):
        resolve([])


class Standard:
    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)


def test_standard_input_can_be_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Standard(b"from a pipe"))
    (first,) = resolve(["-"])
    (second,) = resolve(["-"])
    assert first == second
    assert first.name == "standard input"
    assert first.path.read_bytes() == b"from a pipe"
    monkeypatch.setattr(sys, "stdin", Standard(b""))
    with pytest.raises(DataError, match=r"^standard input: the file is empty; give a file with text in it$"):
        resolve(["-"])


def test_standard_input_leaves_nothing_behind(tmp_path: Path) -> None:
    code = "from throughtime.data.paths import resolve; print(resolve(['-'])[0].path.read_text())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="piped",
        text=True,
        capture_output=True,
        check=True,
        env={"THROUGHTIME_CACHE": str(tmp_path)},
    )
    assert done.stdout == "piped\n"
    assert list((tmp_path / "stdin").iterdir()) == []


def test_standard_input_without_a_place_to_keep_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("THROUGHTIME_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(sys, "stdin", Standard(b"text"))
    with pytest.raises(StorageError, match=r"cannot write .*stdin: Not a directory"):
        resolve(["-"])


def test_the_standard_library_without_tests_and_packages() -> None:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path.relative_to(root) for path in stdlib_files()]
    assert {Path("os.py"), Path("json/decoder.py")} <= set(files)
    assert len(files) > 300
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    assert not [path for path in files if left_out & set(path.parts)]
    assert [file.path for file in resolve(["stdlib:"])] == stdlib_files()


def test_a_python_without_its_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(DataError, match=r"^stdlib: no sources of the standard library in .*; name a text of your own"):
        stdlib_files()


def test_a_file_named_twice_is_taken_once(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("text")
    files = resolve([tmp_path / "b.txt", tmp_path, f"{tmp_path}/./b.txt"])
    assert [file.path.name for file in files] == ["b.txt", "a.txt"]
