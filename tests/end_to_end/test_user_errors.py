"""Every mistake and mishap in one line that says what to do, with its exit code, and no traceback."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]


def fails(done: Any, code: int, line: str) -> None:
    """One line of error, behind the lines of progress; `line` is a pattern for the whole of it."""
    last = done.err.splitlines()[-1]
    assert re.fullmatch(f"throughtime: error: {line}", last), last
    assert done.code == code
    assert done.err.count("throughtime: error") == 1
    assert "Traceback" not in done.err
    assert done.out == ""


def test_no_traceback_from_a_real_process(typed: Call) -> None:
    done = typed("train", "lm", "--data", "zzz", "--run", "run")
    fails(done, 2, r"zzz: no such file or folder; check the path")
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, r"bok\.txt: no such file or folder; did you mean book\.txt\?"),
        (b"", r"bok\.txt: the file is empty; give a file with text in it"),
        (b"a", r"bok\.txt: no text to read \(split 'train'\); give more text"),
        (b"abc\0" * 99, r"bok\.txt: a binary file \(a NUL byte at byte 3\); give files of UTF-8 text"),
        (
            b"fine\n" * 40 + b"caf\xe9\n" * 40,
            r"bok\.txt: line 41, byte 203: not UTF-8 \(0xe9\); convert the file, or --errors replace goes on .*",
        ),
        (
            b"short\n" * 5,
            r"data: the text is too short: 4 rows of one window need 65 tokens, got \d+; lower "
            r"training\.batch_size \(4\) or training\.window \(16\), or give more text",
        ),
    ],
    ids=["missing", "empty", "one byte", "binary", "not UTF-8", "short"],
)
def test_bad_texts(settings: tuple[str, ...], call: Call, content: bytes | None, line: str) -> None:
    if content is not None:
        Path("bok.txt").write_bytes(content)
    fails(call("train", "lm", "--data", "bok.txt", "--run", "run", *settings), 2, line)
    assert not Path("run").exists()


def test_going_on_with_bytes_that_are_no_utf8(settings: tuple[str, ...], call: Call) -> None:
    Path("latin.txt").write_bytes(b"caf\xe9 au lait\n" * 99)
    options = ("--errors", "replace", *settings, "training.max_steps=1")
    assert call("train", "lm", "--data", "latin.txt", "--run", "run", *options).code == 0


def test_a_folder_with_a_binary_file_in_it(settings: tuple[str, ...], call: Call) -> None:
    Path("texts").mkdir()
    Path("texts/a.txt").write_text("fine\n" * 99)
    Path("texts/b.txt").write_bytes(b"\x7fELF\0\0\0")
    Path("texts/c.png").write_bytes(b"\x89PNG\0")
    fails(call("train", "lm", "--run", "run", "--data", "texts"), 2, r"texts/b\.txt: a binary file \(a NUL byte .*")
    Path("texts/b.txt").unlink()
    assert call("train", "lm", "--run", "run", "--data", "texts", *settings, "training.max_steps=1").code == 0


def test_rows_without_characters(settings: tuple[str, ...], call: Call) -> None:
    Path("rows.csv").write_text("text,n\n" + '"",1\n' * 99)
    line = r"data: expected text to predict, got \d+ empty documents; give more text"
    fails(call("train", "lm", "--run", "run", "--data", "rows.csv", *settings, "training.batch_size=1"), 2, line)


def test_wrong_keys_and_values(call: Call) -> None:
    done = call(
        "train", "lm", "--data", "book.txt", "--set", "training.lerning_rate=1", "model.dropout=2", "--run", "run"
    )
    fails(
        done,
        2,
        r"--set: 2 faults: model\.dropout: should be less than 1, got 2; "
        r"training\.lerning_rate: unknown key, did you mean learning_rate\?",
    )


def test_a_loss_that_is_lost(settings: tuple[str, ...], call: Call) -> None:
    options = (*settings, "training.learning_rate=1e9", "training.gradient_clip=0", "training.max_steps=99")
    command = ("train", "lm", "--data", "book.txt", "--run", "run", *options)
    start = r"training: the loss or its gradient is not finite at step \d+; "
    remedies = r"lower training\.learning_rate or training\.gradient_clip, or set training\.precision=fp32, "
    fails(call(*command), 1, rf"{start}there is no checkpoint yet; {remedies}and begin again with --resume")
    # What the line says to do.
    mended = call(*command, "training.learning_rate=0.01", "training.max_steps=2", "--resume")
    assert mended.code == 0
    checkpoint = r"the last good checkpoint is run/checkpoints/step-00000002"
    again = call(*command, "--resume")
    fails(again, 1, rf"{start}{checkpoint}; {remedies}and go on with --resume")


def test_a_prompt_never_seen(settings: tuple[str, ...], call: Call) -> None:
    options = (*settings, "data.tokenizer=chars", "training.max_steps=2")
    assert call("train", "lm", "--data", "book.txt", "--run", "run", *options).code == 0
    done = call("generate", "run", "--prompt", "a € 日", "--seed", 1)
    fails(done, 2, r"prompt: the model has never seen '€' \(U\+20AC\), '日' \(U\+65E5\); leave them out, or train .*")


def test_a_damaged_checkpoint(run: Path, call: Call) -> None:
    command = ("train", "lm", "--run", run, "--resume", "--set", "training.max_steps=42")
    newest = run / "checkpoints" / "step-00000040"
    data = (newest / "model.safetensors").read_bytes()
    (newest / "model.safetensors").write_bytes(data[:-7])
    remedy = rf"the last good one is step-00000030: to go on from there, `mv {newest} {newest}\.damaged`, then --resume"
    start = rf"checkpoint {newest}: model\.safetensors is"
    fails(call(*command), 1, rf"{start} truncated: expected {len(data)} bytes, got {len(data) - 7}; {remedy}")
    (newest / "model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    fails(call(*command), 1, rf"{start} altered: its SHA-256 is not the one it was written with; {remedy}")
    newest.rename(f"{newest}.damaged")
    done = call(*command)
    assert done.code == 0
    assert "resuming at step 30" in done.err


def test_a_damaged_model(run: Path, call: Call) -> None:
    path = run / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    fails(call("generate", run), 1, rf"{path}: altered: its SHA-256 is not the one it was written with; put a sound .*")
    path.write_bytes(data[:99])
    fails(call("evaluate", run, "--data", "book.txt"), 1, rf"{path}: damaged \(.*\); put a sound one in its place, .*")


@pytest.mark.parametrize(
    ("mark", "line"),
    [
        ('{"format": 1, "task": "tag"}', r"expected a run of lm, got one of tag; name a run of lm"),
        ('{"format": 9, "task": "lm"}', r"expected format 1 or older, got 9; a newer throughtime wrote it: upgrade"),
        ("", r"its run\.json is damaged; restore that file, or train again"),
    ],
)
def test_runs_of_others(run: Path, call: Call, mark: str, line: str) -> None:
    (run / "run.json").write_text(mark)
    for command in (("generate", run), ("train", "lm", "--resume", "--run", run), ("evaluate", run, "--data", "a")):
        fails(call(*command), 2, f"run folder run: {line}")


def test_wrong_run_folders(run: Path, call: Call) -> None:
    train = ("train", "lm", "--data", "book.txt", "--run")
    fails(call(*train, run), 2, r"run folder run: a run is there already; go on with --resume, or choose another --run")
    fails(call(*train, "."), 2, r"run folder \.: it holds other files; choose a new or empty folder as --run")
    fails(call(*train, "book.txt"), 2, r"run folder book\.txt: expected a folder, got a file; choose another --run")
    fails(call(*train, "new", "--resume"), 2, r"run folder new: no such folder; check the path, or train into it first")
    fails(call("generate", "book.txt"), 2, r"run folder book\.txt: expected a folder, got a file; name the folder .*")
    fails(call("generate", "."), 2, r"run folder \.: not a run folder, it has no run\.json; check the path")
    fails(call(*train, "book.txt/run"), 1, r"cannot write book\.txt/run/run\.json: Not a directory; .*")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB; needs the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small file system cannot be mounted here: {error}")
    yield Path("disk")
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(settings: tuple[str, ...], small_disk: Path, call: Call) -> None:
    run = small_disk / "run"
    keys = ("training.max_steps=30", "training.checkpoint_every=5", "training.keep_checkpoints=9")
    command = ("train", "lm", "--data", "book.txt", "--run", run, *settings, *keys)
    fails(call(*command), 1, r"cannot write disk/run/.*: No space left on device; the disk is full; free some space .*")
    steps = sorted((run / "checkpoints").glob("step-*"))
    assert steps
    assert not list(run.rglob("*.partial"))
    # Nothing is lost: more room, and it goes on.
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk.resolve())], check=True)
    done = call(*command, "--resume")
    assert done.code == 0
    assert f"resuming at step {int(steps[-1].name[5:])}" in done.err


def test_a_read_only_disk(settings: tuple[str, ...], small_disk: Path, trained: Path, call: Call) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk.resolve())], check=True)
    line = r"cannot write disk/run.*: Read-only file system; the file system is read-only; choose another folder"
    fails(call("train", "lm", "--data", "book.txt", "--run", small_disk / "run", *settings), 1, line)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_a_folder_that_may_not_be_written(settings: tuple[str, ...], call: Call) -> None:
    Path("locked").mkdir(mode=0o500)
    line = r"cannot write locked/run.*: Permission denied; permission denied; choose a folder that you may write to"
    fails(call("train", "lm", "--data", "book.txt", "--run", "locked/run", *settings), 1, line)
