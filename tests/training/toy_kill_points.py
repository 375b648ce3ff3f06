"""Kills a toy training before every single change of a file, resumes it, and compares the ends bit by bit.

One child process keeps a copy of the run folder whenever it is about to open a file for writing, rename, make or remove
something in it: what a kill -9 at that moment leaves. From each copy another child resumes, and dies in the same way;
then one resumes to the end. Prints the number of points.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401 - imported once, before the forks
import safetensors.torch  # noqa: F401
import torch
import torch._dynamo
from toy_run import TOY
from toy_task import RecordedProgress, ToyTask

from throughtime.storage import write_file
from throughtime.training import distributed, loop
from throughtime.training.config import TrainingConfig
from throughtime.training.loop import Trainer
from throughtime.training.run_folder import RunFolder

KEYS: dict[str, Any] = {
    "max_steps": 5,
    "checkpoint_every": 2,
    "evaluate_every": 3,
    "log_every": 2,
    "keep_checkpoints": 1,
    "batch_size": 2,
}
_CHANGES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree"}


def train(path: Path, *, resume: bool) -> None:
    torch.set_num_threads(1)
    config = TrainingConfig(**TOY | KEYS)
    distribution = distributed.start(config)
    Trainer(ToyTask(rows=2), config, RunFolder.open(path, "toy"), distribution, RecordedProgress()).fit(resume=resume)


def before_changes(folder: Path, act: Callable[[int], object]) -> None:
    """Call `act` with 1, 2, ... whenever the run folder is about to change."""
    seen = 0
    acting = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen, acting
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not acting and (writes or event in _CHANGES) and str(arguments[0]).startswith(f"{folder}{os.sep}"):
            seen += 1
            acting = True
            act(seen)
            acting = False

    sys.addaudithook(hook)


def die_at(point: int) -> Callable[[int], None]:
    """Leave at once when the run folder is about to change for the `point`-th time."""

    def act(number: int) -> None:
        if number == point:
            os._exit(9)

    return act


def in_child(path: Path, *, resume: bool, act: Callable[[int], object] | None = None) -> int:
    """The exit code of a forked training: 9 when it was killed. `act` is called before each change of the folder."""
    child = os.fork()
    if child == 0:
        try:
            if act is not None:
                before_changes(path, act)
            train(path, resume=resume)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def ends(run: Path) -> list[str]:
    last = max(entry for entry in (run / "checkpoints").iterdir() if entry.name.startswith("step-"))
    leftovers = [entry.name for entry in run.rglob(".*")]
    assert not leftovers, leftovers
    files = [run / "model.safetensors", *sorted(last.glob("*.safetensors"))]
    return [f"{file.relative_to(run)} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files]


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="kill-points-"))
    # A picture takes as long as all else together, and what matters here is that its file is written.
    loop.draw_curve = lambda records, path: write_file(path, f"{len(records)} records")
    gc.freeze()
    try:
        whole = RunFolder.create(folder / "whole", "toy").path
        assert in_child(whole, resume=False, act=lambda n: shutil.copytree(whole, folder / f"run-{n}")) == 0
        expected = ends(whole)
        points = len(list(folder.glob("run-*")))
        for point in range(1, points + 1):
            run = folder / f"run-{point}"
            # The resumed one is killed once, too, at a point that wanders.
            assert in_child(run, resume=True, act=die_at(1 + point % 17)) in (0, 9)
            assert in_child(run, resume=True) == 0, f"point {point}: resuming failed"
            assert ends(run) == expected, f"point {point}: another end"
            shutil.rmtree(run)
        print(json.dumps({"points": points}))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
