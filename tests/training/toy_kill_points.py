"""Kills a toy training before every single change of a file, resumes it, and compares the ends bit by bit.

A fresh child process for each point dies (as by kill -9) when it is about to open a file for writing, rename, make
or remove something in the run folder for the n-th time; another child resumes. Prints the number of points.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401 - imported once, before the forks
import safetensors.torch  # noqa: F401
import torch
import torch._dynamo
from toy_run import TOY
from toy_task import RecordedProgress, ToyTask

from throughtime.training import distributed
from throughtime.training.config import TrainingConfig
from throughtime.training.curve import draw_curve
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


def die_at(point: int, folder: Path) -> None:
    """Leave at once when the run folder is about to change for the `point`-th time."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in _CHANGES) and str(arguments[0]).startswith(str(folder)):
            seen += 1
            if seen == point:
                os._exit(9)

    sys.addaudithook(hook)


def in_child(path: Path, *, resume: bool, point: int = 0) -> int:
    """The exit code of a forked training: 9 when it was killed."""
    child = os.fork()
    if child == 0:
        try:
            if point:
                die_at(point, path)
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
    draw_curve([{"kind": "train", "step": 1, "loss": 1.0}], folder / "warm.png")  # imports, before the forks
    gc.freeze()
    try:
        whole = RunFolder.create(folder / "whole", "toy").path
        assert in_child(whole, resume=False) == 0
        expected = ends(whole)
        point = 0
        while True:
            point += 1
            run = RunFolder.create(folder / f"run-{point}", "toy").path
            code = in_child(run, resume=False, point=point)
            if code == 0:
                break
            assert code == 9, f"point {point}: exit code {code}"
            # The resumed one is killed once, too, at a point that wanders.
            assert in_child(run, resume=True, point=1 + point % 17) in (0, 9)
            assert in_child(run, resume=True) == 0, f"point {point}: resuming failed"
            assert ends(run) == expected, f"point {point}: another end"
            shutil.rmtree(run)
        print(json.dumps({"points": point - 1}))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
