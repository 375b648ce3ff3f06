"""Killed, interrupted, on two processes: a run goes on as if nothing had happened."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]
FILES = {
    "run.json", "config.toml", "config.json", "model.safetensors", "tokenizer.json", "data.json", "metrics.jsonl",
    "curve.png", "checkpoints",
}  # fmt: skip


def test_going_on_after_the_end(settings: tuple[str, ...], run: Path, call: Call) -> None:
    done = call("train", "lm", "--run", run, "--data", run.parent / "book.txt", "--resume")
    assert done.code == 0
    assert "run: 40 steps (max_steps = 40 reached)" in done.out
    longer = call("train", "lm", "--resume", "--run", run, "--set", "training.max_steps=45")
    assert longer.code == 0
    assert "resuming at step 40" in longer.err
    assert "run: 45 steps (max_steps = 45 reached)" in longer.out


LONG = ("training.max_steps=1000", "training.checkpoint_every=40", "training.evaluate_every=300")


@pytest.fixture(scope="module")
def command(settings: tuple[str, ...], texts: Path) -> tuple[object, ...]:
    """A training of some seconds into the folder "run"."""
    return ("train", "lm", "--data", texts / "book.txt", "--run", "run", *settings, *LONG)


def digests(run: Path) -> dict[str, bytes]:
    """Of the published model, and of all tensors at the last step."""
    files = [run / "model.safetensors", *sorted((run / "checkpoints" / "step-00001000").glob("*.safetensors"))]
    assert len(files) == 4
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


def wait_for(process: subprocess.Popen[bytes], path: Path) -> None:
    """Wait until there is something in the folder `path`."""
    while not (path.is_dir() and any(entry.name[0] != "." for entry in path.iterdir())):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def uninterrupted(typed: Call, command: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    run = tmp_path_factory.mktemp("whole") / "run"
    done = typed(*(run if word == "run" else word for word in command))
    assert done.code == 0, done.err
    return digests(run)


@pytest.mark.slow
def test_killed_at_random_moments(
    typed: Call, start: Call, uninterrupted: dict[str, str], command: tuple[object, ...]
) -> None:
    moments = random.Random(7)
    kills = 0
    for attempt in range(2):
        process = start(*command, *(["--resume"] if attempt else []))
        if attempt == 0:
            wait_for(process, Path("run/checkpoints"))
        time.sleep(moments.uniform(0, 1) if attempt == 0 else moments.uniform(1.5, 4))
        process.kill()
        process.communicate(timeout=60)
        kills += process.returncode == -signal.SIGKILL
    assert kills
    done = typed(*command, "--resume")
    assert done.code == 0, done.err
    assert digests(Path("run")) == uninterrupted


@pytest.mark.slow
@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143)])
def test_signals_save(
    typed: Call,
    start: Call,
    number: signal.Signals,
    name: str,
    code: int,
    uninterrupted: dict[str, str],
    command: tuple[object, ...],
) -> None:
    process = start(*command)
    wait_for(process, Path("run/checkpoints"))
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, b"")
    last = err.decode().splitlines()[-1]
    assert re.fullmatch(
        rf"throughtime: error: training: stopped by {name} at step \d+; all is saved in run: "
        r"go on with the same command and --resume",
        last,
    )
    assert b"Traceback" not in err
    if number == signal.SIGTERM:
        assert typed(*command, "--resume").code == 0
        assert digests(Path("run")) == uninterrupted


@pytest.mark.slow
def test_two_processes(typed: Call, call: Call, settings: tuple[str, ...]) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    command = ("train", "lm", "--data", "book.txt", "--run", "run", *settings, "training.evaluate_every=10")
    done = typed(*command, "training.max_steps=20", launcher=torchrun)
    assert done.code == 0, done.err
    assert {entry.name for entry in Path("run").iterdir()} == FILES
    assert done.out.count("20 steps (max_steps = 20 reached)") == 1
    assert done.err.count("held-out") == 2
    ranks = sorted(path.name for path in Path("run/checkpoints/step-00000020").glob("rank-*"))
    assert ranks == ["rank-00000.safetensors", "rank-00001.safetensors"]
    entries = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if entry["kind"] == "evaluation"] == [10, 20]
    longer = typed(*command, "training.max_steps=30", "--resume", launcher=torchrun)
    assert longer.code == 0, longer.err
    assert "resuming at step 20\n" in longer.err
    alone = call("evaluate", "run", "--data", "other.txt", "--json")
    assert json.loads(alone.out)["bits_per_byte"] < 8
