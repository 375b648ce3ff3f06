"""Trains the toy task as a command would: `python toy_run.py RUN [--resume] [--slow SECONDS] [key=value ...]`.

Prints "training" when the loop is about to begin, so that a test can kill it from then on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from toy_task import ToyTask

from throughtime.errors import ThroughtimeError
from throughtime.training import distributed
from throughtime.training.config import TrainingConfig
from throughtime.training.loop import Trainer
from throughtime.training.run_folder import RunFolder

TOY: dict[str, Any] = {"warmup_steps": 3, "learning_rate": 1e-2, "device": "cpu", "precision": "fp32"}


class SlowTask(ToyTask):
    """Waits at every batch, so that a signal meets a training that is not over yet."""

    seconds = 0.0

    def batch(self, index: int) -> tuple[torch.Tensor, torch.Tensor, bool]:
        time.sleep(self.seconds)
        return super().batch(index)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("keys", nargs="*")
    arguments = parser.parse_intermixed_args()
    keys = {name: json.loads(value) for name, _, value in (key.partition("=") for key in arguments.keys)}
    dropout, rows = keys.pop("dropout", 0.2), keys.get("batch_size", 4)
    torch.set_num_threads(1)
    SlowTask.seconds = arguments.slow
    config = TrainingConfig(**TOY | keys | {"batch_size": rows})
    distribution = distributed.start(config)
    try:
        task = SlowTask(
            rows=rows,
            rank=distribution.rank,
            world_size=distribution.world_size,
            dropout=dropout,
            sums=distribution.sum,
        )
        # Asked by the main process alone: another that came late would find the folder made, and not wait for it.
        distribution.on_main(lambda: create(arguments.run))
        run = RunFolder.open(arguments.run, "toy")
        print("training", flush=True)
        outcome = Trainer(task, config, run, distribution).fit(resume=arguments.resume)
        print(json.dumps(outcome._asdict()), flush=True)
    except ThroughtimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        distribution.close()
    return 0


def create(run: Path) -> None:
    """Make the run folder, if it is not one yet."""
    if not (run / "run.json").exists():
        RunFolder.create(run, "toy")


if __name__ == "__main__":
    sys.exit(main())
