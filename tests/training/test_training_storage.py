"""Disks that are full or read-only: one clear line, and nothing lost that was there before."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from throughtime.errors import StorageError
from throughtime.training.checkpoint import find_fault
from throughtime.training.loop import Trainer

MakeTrainer = Callable[..., Trainer]


@pytest.mark.parametrize("call", ["fsync", "replace", "rename"])
def test_a_disk_that_fills_up(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    make_trainer(max_steps=10, evaluate_every=10).fit()
    trainer = make_trainer(max_steps=20, evaluate_every=10)
    before = trainer.run.model.read_bytes()
    real = getattr(os, call)

    def full(*arguments: object, **keywords: object) -> object:
        if any(part in str(arguments[0]) for part in ("step-", "model")) or call == "fsync":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **keywords)

    def fill(*_: object) -> None:
        monkeypatch.setattr(os, call, full)

    monkeypatch.setattr(trainer.task, "describe", lambda loss: fill() or {})  # type: ignore[func-returns-value]
    with pytest.raises(
        StorageError, match=r"cannot write .*: No space left on device; the disk is full; free some space"
    ):
        trainer.fit(resume=True)
    monkeypatch.setattr(os, call, real)
    assert trainer.run.model.read_bytes() == before
    steps = trainer.store.steps()
    assert 10 in steps
    assert all(find_fault(trainer.store.path(step)) is None for step in steps)
    assert make_trainer(max_steps=20, evaluate_every=10).fit(resume=True).steps == 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB; needs the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small file system cannot be mounted here: {error}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_really_is_full(make_trainer: MakeTrainer, small_disk: Path) -> None:
    trainer = make_trainer(into=small_disk, max_steps=200, evaluate_every=500, keep_checkpoints=20)
    with pytest.raises(StorageError, match=r"cannot write .*: No space left on device; the disk is full"):
        trainer.fit()
    steps = trainer.store.steps()
    assert steps
    assert all(find_fault(trainer.store.path(step)) is None for step in steps)
    assert not [entry for entry in trainer.run.checkpoints.iterdir() if entry.name.startswith(".")]


def test_a_read_only_disk(make_trainer: MakeTrainer, small_disk: Path) -> None:
    trainer = make_trainer(into=small_disk, max_steps=2)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    path = re.escape(str(small_disk))
    with pytest.raises(StorageError, match=f"cannot write {path}.*: Read-only file system; .* choose another folder"):
        trainer.fit()
    with pytest.raises(StorageError, match=f"cannot write {path}.*: Read-only file system"):
        make_trainer(into=small_disk, name="other", max_steps=2)
