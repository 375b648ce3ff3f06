"""The toy task, and trainers of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # toy_task, for these tests and for the processes they start

from toy_task import RecordedProgress, ToyTask

from throughtime.training import distributed
from throughtime.training.config import TrainingConfig
from throughtime.training.loop import Trainer
from throughtime.training.run_folder import RunFolder

TOY: dict[str, Any] = {
    "batch_size": 4,
    "warmup_steps": 3,
    "learning_rate": 1e-2,
    "checkpoint_every": 5,
    "log_every": 4,
    "device": "cpu",
    "precision": "fp32",
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """A trainer of the toy task in tmp_path/run; keywords are those of [training]; `task` replaces the toy's."""

    def make(task: Callable[[], ToyTask] = ToyTask, name: str = "run", into: Path = tmp_path, **keys: Any) -> Trainer:
        config = TrainingConfig(**TOY | keys)
        distribution = distributed.start(config)
        path = into / name
        run = RunFolder.open(path) if (path / "run.json").exists() else RunFolder.create(path, "toy")
        return Trainer(task(), config, run, distribution, RecordedProgress())

    return make
