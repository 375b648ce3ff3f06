"""The toy task, and trainers of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
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


PATIENCE = 240  # seconds for a toy run, which takes a few; less than a test may take


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


class ToyRun:
    """A toy_run.py in a process of its own."""

    def __init__(self, ask: Callable[[Any], Any], folder: Path, arguments: list[str], environment: dict[str, str]):
        self._ask = ask
        self._out, self._err = folder / "out", folder / "err"
        files = {"out": str(self._out), "err": str(self._err)}
        self._process: int = ask({"arguments": arguments, "environment": environment, **files})
        self.returncode: int | None = None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self._process, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._ask(self._process)
        return self.returncode

    def communicate(self) -> tuple[str, str]:
        """Wait for its end; what it wrote. After minutes it is aborted, and what it wrote says where it stood."""
        deadline = time.monotonic() + PATIENCE
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.send_signal(signal.SIGABRT)
            time.sleep(0.005)
        return self._out.read_text("utf-8"), self._err.read_text("utf-8")

    def wait_for_training(self) -> None:
        """Until the loop is about to begin."""
        while not (self._out.exists() and self._out.read_text("utf-8").startswith("training\n")):
            assert self.poll() is None, self.communicate()
            time.sleep(0.005)


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., ToyRun]]:
    """Start toy_run.py with those arguments, and more in its environment; without the seconds that imports take."""
    command = [sys.executable, str(Path(__file__).parent / "toy_server.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"

        def ask(order: Any) -> Any:
            print(json.dumps(order), file=server.stdin, flush=True)
            return json.loads(server.stdout.readline())  # type: ignore[union-attr]

        def start(*arguments: object, environment: Mapping[str, str] | None = None) -> ToyRun:
            given = [str(argument) for argument in arguments]
            return ToyRun(ask, tmp_path_factory.mktemp("toy"), given, dict(environment or {}))

        yield start
        server.stdin.close()
