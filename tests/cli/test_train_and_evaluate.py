"""What `train lm`, `evaluate` and `demo` hand to the floor below, and what they print."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

RESULTS = {"nats_per_token": 1.25, "bits_per_byte": 1.8034, "perplexity": 3.49, "tokens": 12345, "bytes": 12344}

OUTCOME = SimpleNamespace(
    steps=1200, best={"loss": 1.5, "bits_per_byte": 2.164}, best_step=1000, stopped_because="max_steps"
)


@pytest.fixture
def language(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any, Any]]:
    """What the functions of the language task were called with."""
    from throughtime.tasks import language as module

    calls: list[tuple[str, Any, Any]] = []

    def record(name: str, result: Any) -> Callable[..., Any]:
        def function(*arguments: Any, **options: Any) -> Any:
            calls.append((name, arguments, options))
            return result

        return function

    for name, result in (("train", OUTCOME), ("evaluate", RESULTS)):
        monkeypatch.setattr(module, name, record(name, result))
    return calls


def test_train_hands_everything_on(call: Callable[..., Any], language: list[Any]) -> None:
    line = (
        "train lm --data a.txt b.txt --run r --valid c --config f.toml --set model.hidden_size=8 training.window=4 "
        "--resume --tensorboard --column body --errors replace --seed 3"
    )
    called = call(*line.split())
    assert called.code == 0
    assert language == [
        (
            "train",
            (["a.txt", "b.txt"], Path("r")),
            {
                "valid": ["c"],
                "column": "body",
                "errors": "replace",
                "config_file": Path("f.toml"),
                "overrides": ["model.hidden_size=8", "training.window=4", "training.seed=3"],
                "resume": True,
                "tensorboard": True,
            },
        )
    ]
    assert called.out == "r: 1,200 steps (max_steps); best at step 1,000: loss 1.5000, bits per byte 2.1640\n"


def test_train_without_options_leaves_them_to_the_configuration(call: Callable[..., Any], language: list[Any]) -> None:
    assert call("train", "lm", "--config", "f.toml", "--run", "r").code == 0
    _, arguments, options = language[0]
    assert arguments == ([], Path("r"))
    assert options["errors"] is None
    assert options["column"] is None
    assert options["overrides"] == []


@pytest.mark.parametrize("given", ["--resume", "--set data.paths=['a.txt']"])
def test_train_needs_no_data_where_it_is_known(call: Callable[..., Any], language: list[Any], given: str) -> None:
    assert call("train", "lm", "--run", "r", *given.split()).code == 0


def test_only_the_main_process_tells_the_outcome(
    call: Callable[..., Any], language: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert call("train", "lm", "--data", "a", "--run", "r") == (0, "", "")


def test_evaluate_prints_a_table(call: Callable[..., Any], language: list[Any]) -> None:
    called = call("evaluate", "r", "--data", "a", "b", "--column", "body", "--errors", "replace")
    assert language == [("evaluate", (Path("r"), ["a", "b"]), {"column": "body", "errors": "replace"})]
    assert called.out.splitlines() == [
        "nats per token  1.2500",
        "bits per byte   1.8034",
        "perplexity      3.4900",
        "tokens          12,345",
        "bytes           12,344",
    ]


def test_evaluate_prints_one_object(call: Callable[..., Any], language: list[Any]) -> None:
    called = call("evaluate", "r", "--data", "a", "--json")
    assert json.loads(called.out) == RESULTS
    assert called.out.count("\n") == 1
    assert language[0][2] == {"column": None, "errors": None}


def test_demo(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from throughtime.tasks import demo as task

    calls: list[Any] = []

    def demonstrate(run: Path, minutes: float) -> Any:
        calls.append((run, minutes))
        return OUTCOME, [(0.5, "def one():"), (1.0, "def two():")]

    monkeypatch.setattr(task, "demo", demonstrate)
    called = call("demo", "--run", "r", "--minutes", 0.5)
    assert called.code == 0
    assert calls == [(Path("r"), 0.5)]
    assert "2.164 bits per byte after 1,200 steps" in called.out
    assert "\n--- temperature 0.5 ---" in called.out
    assert "\ndef two():\n" in called.out
    assert "throughtime generate r --prompt" in called.out


def test_evaluate_of_a_real_run(call: Callable[..., Any], tiny_run: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some words of text\n" * 400)
    called = call("evaluate", tiny_run, "--data", text, "--json")
    results = json.loads(called.out)
    assert called.code == 0
    assert {"nats_per_token", "bits_per_byte", "bits_per_character", "perplexity", "tokens"} <= set(results)
    assert results["tokens"] == 19 * 400 + 1
