"""Two processes over gloo against one with the double batch, and the ways a run moves between them."""

from __future__ import annotations

import dataclasses
import functools
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from throughtime.errors import ConfigError, FailureError, StorageError
from throughtime.training import distributed
from throughtime.training.config import TrainingConfig
from throughtime.training.metrics import read_metrics

SCRIPT = Path(__file__).parent / "toy_run.py"
KEYS = ["dropout=0", "gradient_accumulation=2", "checkpoint_every=10", "log_every=10", 'schedule="constant"']


def run(processes: int, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_script(processes, SCRIPT, str(folder), *KEYS, *arguments)


def run_script(processes: int, script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launcher, str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)


def assert_close(here: Path, there: Path) -> None:
    left, right = load_file(here / "model.safetensors"), load_file(there / "model.safetensors")
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=1e-4, atol=2e-6)


class Ended(NamedTuple):
    """What a run left."""

    returncode: int
    stderr: str


def trained(toy_run: Callable[..., Any], processes: int, folder: Path, *arguments: str) -> Ended:
    """What torchrun starts, without itself; the main process's end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(processes)}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), **meeting} for rank in range(processes)]
    environments = ranks if processes > 1 else [{}]
    runs = [toy_run(folder, *KEYS, *arguments, environment=environment) for environment in environments]
    errors = [run.communicate()[1] for run in runs]
    ends = [Ended(run.returncode, error) for run, error in zip(runs, errors, strict=True)]
    assert not any(end.stderr for end in ends[1:])  # one process talks
    return ends[0]


@pytest.mark.slow
def test_two_processes_are_one_with_the_double_batch(tmp_path: Path, toy_run: Callable[..., Any]) -> None:
    run = functools.partial(trained, toy_run)
    two = run(2, tmp_path / "two", "batch_size=2", "max_steps=30")
    assert two.returncode == 0, two.stderr
    one = run(1, tmp_path / "one", "batch_size=4", "max_steps=30")
    assert one.returncode == 0, one.stderr
    assert_close(tmp_path / "one", tmp_path / "two")
    assert two.stderr.count("held-out") == one.stderr.count("held-out")  # one process talks
    logs = [
        [(line["kind"], line["step"], line["loss"]) for line in read_metrics(folder / "metrics.jsonl")]
        for folder in (tmp_path / "one", tmp_path / "two")
    ]
    assert [line[:2] for line in logs[0]] == [line[:2] for line in logs[1]]
    assert [line[2] for line in logs[0]] == pytest.approx([line[2] for line in logs[1]], rel=1e-4)

    # Resumed by two, nothing is lost; resumed by one, the carried state is, and that is said.
    again = run(2, tmp_path / "two", "batch_size=2", "max_steps=40", "--resume")
    assert again.returncode == 0, again.stderr
    assert "resuming at step 30\n" in again.stderr
    longer = run(1, tmp_path / "one", "batch_size=4", "max_steps=40", "--resume")
    assert longer.returncode == 0, longer.stderr
    assert_close(tmp_path / "one", tmp_path / "two")
    alone = run(1, tmp_path / "two", "batch_size=2", "max_steps=42", "--resume")
    assert alone.returncode == 0, alone.stderr
    assert (
        "resuming at step 40: the number of processes, the batch size, the window or the number of batches has changed"
        in alone.stderr
    )


@pytest.mark.slow
def test_a_failure_of_the_main_process_ends_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("taken")
    result = run(2, tmp_path / "file", "max_steps=3")
    assert result.returncode != 0
    assert "error: run folder" in result.stderr
    # torchrun ends the others as soon as one has failed, whichever it saw first.
    assert "exitcode  : 2 " in result.stderr, result.stderr


PATIENCE = """
import os
import torch
from torch import distributed as dist
from throughtime.training import distributed
from throughtime.training.config import TrainingConfig

here = distributed.start(TrainingConfig(device="cpu"))
for group in (dist.group.WORLD, here.control):
    # In one piece: both processes write to one pipe.
    os.write(1, b"%d days\\n" % group._get_backend(torch.device("cpu")).options._timeout.days)
here.close()
"""


@pytest.mark.slow
def test_processes_wait_for_a_main_one_at_work_for_long(tmp_path: Path) -> None:
    script = tmp_path / "patience.py"
    script.write_text(PATIENCE)
    result = run_script(2, script)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("7 days") == 4


def test_a_process_by_itself(tmp_path: Path) -> None:
    alone = distributed.start(TrainingConfig(device="cpu", precision="fp32"))
    assert (alone.rank, alone.world_size, alone.is_main, alone.device.type) == (0, 1, True, "cpu")
    assert alone.sum([1.0, 2.5]) == [1.0, 2.5]
    assert alone.gather(b"abc") == [b"abc"]
    called: list[int] = []
    alone.on_main(lambda: called.append(1))
    assert called == [1]

    def fail() -> None:
        raise StorageError("cannot write x")

    with pytest.raises(StorageError, match="cannot write x"):
        alone.on_main(fail)


def test_the_seed_decides_the_weights() -> None:
    draws = []
    for seed in (1, 1, 2):
        distributed.start(TrainingConfig(device="cpu", seed=seed))
        draws.append(torch.rand(3).tolist())
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("in_hardware", [True, False])
def test_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch, in_hardware: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: in_hardware)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert distributed.start(TrainingConfig(device="cpu")).precision == ("bf16" if in_hardware else "fp32")
    assert distributed.start(TrainingConfig(device="cpu", precision="fp32")).precision == "fp32"
    assert distributed.start(TrainingConfig(device="cpu", precision="bf16")).precision == "bf16"


def test_auto_is_cuda_or_the_cpu_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda *_, **__: True)  # MPS, for example
    assert distributed.start(TrainingConfig(device="auto")).device.type == "cpu"
    assert distributed._use_cpu("auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [distributed._use_cpu(device) for device in ("auto", "cuda", "cpu")] == [False, False, True]


def test_the_failure_of_the_main_process_is_that_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = distributed.start(TrainingConfig(device="cpu", precision="fp32"))
    other = dataclasses.replace(alone, rank=1)
    monkeypatch.setattr(distributed.Distribution, "sum", lambda self, values: [ConfigError.exit_code])
    with pytest.raises(FailureError, match="process 1: process 0 failed; see its message") as caught:
        other.on_main(lambda: None)
    assert caught.value.exit_code == ConfigError.exit_code == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(
        ConfigError, match=r"training.device: cuda is asked for, but torch sees no CUDA device; use auto"
    ):
        distributed.start(TrainingConfig(device="cuda"))
