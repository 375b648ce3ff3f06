"""Files and folders that are never left half-written, whatever happens on the way."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from throughtime import storage
from throughtime.errors import StorageError


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("data", "kept"), [("grün\n", "grün\n".encode()), (b"\x00\xff", b"\x00\xff"), ("", b"")])
def test_a_file_is_written_whole_and_alone(tmp_path: Path, data: Any, kept: bytes) -> None:
    storage.write_file(tmp_path / "new" / "file.txt", "old")
    storage.write_file(str(tmp_path / "new" / "file.txt"), data)
    assert everything_in(tmp_path) == {"new/file.txt": kept}


FAULTS = [
    (errno.ENOSPC, "No space left on device; the disk is full; free some space and go on"),
    (errno.EDQUOT, "Disk quota exceeded; the disk quota is used up"),
    (errno.EROFS, "Read-only file system; the file system is read-only; choose another folder"),
    (errno.EACCES, "Permission denied; permission denied; choose a folder that you may write to"),
    (errno.EIO, "Input/output error; what was there before is kept"),
]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(("number", "text"), FAULTS)
def test_a_file_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, text: str, step: str
) -> None:
    path = tmp_path / "file.txt"
    storage.write_file(path, "old")
    monkeypatch.setattr(os, step, failing(number))
    with pytest.raises(StorageError, match=f"cannot write {path}: {text}"):
        storage.write_file(path, "new")
    assert everything_in(tmp_path) == {"file.txt": b"old"}


def failing(number: int) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        storage.write_file(tmp_path / "file", "text")
        replace_folder(tmp_path / "one", "text")
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("file", "one", "one/file")]
    assert modes == [0o666 & ~umask, 0o777 & ~umask, 0o666 & ~umask]


def test_a_path_through_a_file(tmp_path: Path) -> None:
    storage.write_file(tmp_path / "file", "old")
    with pytest.raises(StorageError, match=r"a part of that path is a file|File exists"):
        storage.write_file(tmp_path / "file" / "below", "new")


def test_an_error_without_a_number_is_told_in_its_own_words(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match="cannot write here: something else; what was there"),
        storage.storage_errors(Path("here")),
    ):
        raise OSError("something else")


def test_an_interruption_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_file(tmp_path / "file.txt", "old")

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        storage.write_file(tmp_path / "file.txt", "new")
    assert everything_in(tmp_path) == {"file.txt": b"old"}


def test_a_folder_replaces_an_older_one_whole(tmp_path: Path) -> None:
    for names in (("a", "b"), ("b", "c/d")):
        with storage.replacing_folder(tmp_path / "runs" / "one") as fresh:
            assert fresh.parent == tmp_path / "runs"
            for name in names:
                storage.write_file(fresh / name, name)
    assert everything_in(tmp_path) == {"runs/one/b": b"b", "runs/one/c/d": b"c/d"}
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["one"]


def replace_folder(path: Path, text: str, error: type[BaseException] | None = None) -> None:
    with storage.replacing_folder(path) as fresh:
        (fresh / "file").write_text(text)
        if error is not None:
            raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_folder(tmp_path: Path, error: type[BaseException]) -> None:
    replace_folder(tmp_path / "one", "old")
    with pytest.raises(error):
        replace_folder(tmp_path / "one", "new", error)
    assert everything_in(tmp_path) == {"one/file": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_disk_that_fills_within_the_block_is_told_of_the_folder(tmp_path: Path) -> None:
    told = f"cannot write {tmp_path}/one: No space left on device; the disk is full"
    with pytest.raises(StorageError, match=told), storage.replacing_folder(tmp_path / "one"):
        failing(errno.ENOSPC)()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", [1, 2])
def test_a_rename_that_fails_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    replace_folder(tmp_path / "one", "old")
    rename, calls = os.rename, []

    def failing_once(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == call:
            raise OSError(errno.EIO, "Input/output error")
        rename(*arguments)

    monkeypatch.setattr(os, "rename", failing_once)
    with pytest.raises(StorageError, match="Input/output error"):
        replace_folder(tmp_path / "one", "new")
    assert everything_in(tmp_path) == {"one/file": b"old"}
