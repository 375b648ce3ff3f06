"""A killed training, resumed, ends bit by bit where an uninterrupted one ends."""

from __future__ import annotations

import functools
import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

KILL_POINTS = Path(__file__).parent / "toy_kill_points.py"
KEYS = ["max_epochs=80", "checkpoint_every=7", "log_every=3", "keep_checkpoints=1", "evaluate_every=25"]


Start = Callable[..., Any]


@pytest.fixture
def start(toy_run: Start) -> Start:
    """Start a training in a process of its own; its loop is about to begin."""
    return functools.partial(begin, toy_run)


def begin(toy_run: Start, *arguments: object) -> Any:
    process = toy_run(*arguments)
    process.wait_for_training()
    return process


def final_digests(run: Path) -> dict[str, str]:
    """SHA-256 of the published model and of all tensors in the last checkpoint."""
    last = max((run / "checkpoints").iterdir())
    files = [run / "model.safetensors", *sorted(last.glob("*.safetensors"))]
    return {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def logged(run: Path) -> list[tuple[str, int, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["kind"], line["step"], line["loss"]) for line in lines if line["kind"] == "evaluation"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, toy_run: Start) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    process = begin(toy_run, run, *KEYS)
    _, err = process.communicate()
    assert process.returncode == 0, err
    return run


@pytest.mark.slow
def test_killed_at_random_moments(start: Start, uninterrupted: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    moments = random.Random(20)
    kills = 0
    while kills < 6:
        process = start(run, *KEYS, *(["--resume"] if kills else []))
        time.sleep(moments.uniform(0.0, 0.5))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            break
    process = start(run, *KEYS, "--resume")
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert kills >= 2
    assert final_digests(run) == final_digests(uninterrupted)
    assert logged(run) == logged(uninterrupted)


@pytest.mark.slow
def test_killed_before_every_change_of_a_file() -> None:
    result = subprocess.run(
        [sys.executable, str(KILL_POINTS)], capture_output=True, text=True, timeout=500, check=False
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["points"] > 50


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_training_leaves_the_first_alone_until_that_is_killed(start: Start, tmp_path: Path) -> None:
    run = tmp_path / "run"
    keys = ["max_steps=3", "log_every=1", "checkpoint_every=1"]
    first = start(run, "--slow", "60", *keys)
    try:
        while not (run / "metrics.jsonl").exists():
            time.sleep(0.01)
        (run / ".model.abc.partial").touch()  # of the first one, as it were
        before = everything_in(run)
        second = start(run, "--resume", *keys)
        _, err = second.communicate()
        assert second.returncode == 2
        assert err == f"error: run folder {run}: another training is at work in {run}; wait for it or stop it\n"
        assert everything_in(run) == before
    finally:
        first.kill()
        first.communicate()
    third = start(run, "--resume", *keys)
    _, err = third.communicate()
    assert third.returncode == 0, err
    assert not list(run.glob(".*"))


@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143)])
def test_a_signal_saves_and_says_how_to_go_on(
    start: Start, number: signal.Signals, name: str, code: int, uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(run, "--slow", "0.05", *KEYS)
    # The log is opened when training begins; before that a signal ends the program as it ends any other.
    while not (run / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == code, err
    assert f"error: training: stopped by {name} at step " in err
    assert "go on with the same command and --resume" in err
    assert "Traceback" not in err
    assert (run / "model.safetensors").exists()
    process = start(run, "--resume", *KEYS)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert final_digests(run) == final_digests(uninterrupted)
