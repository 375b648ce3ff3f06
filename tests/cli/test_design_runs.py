"""Commands on the run folder of a design: evaluated, drawn and measured with the sequences that it keeps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import throughtime as tt
from throughtime.data import Sequences, TensorSource


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    data = Sequences(torch.randint(3, (6, 20)), torch.randn(6, 20, 2), lengths=torch.arange(20) % 6 + 1)
    folder = tmp_path_factory.mktemp("runs") / "tagger"
    model = tt.models.ConditionalRecurrent(input_size=2, output_size=3, cell="gru", hidden_size=4)
    tt.tasks.design.train(model, TensorSource(data, 8), data, folder, max_steps=2)
    return folder


def test_evaluate_reports_the_exposure_gap(call: Callable[..., Any], run: Path) -> None:
    results = json.loads(call("evaluate", run, "--json").out)
    assert results["exposure_gap"] == pytest.approx(results["free_running"] - results["loss"])
    assert "exposure gap" in call("evaluate", run).out


def test_its_graph_is_drawn_with_gradients(call: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    assert call("inspect", "unfold", run, "--steps", 3, "--out", tmp_path / "graph.svg").code == 0
    assert "0." in (tmp_path / "graph.svg").read_text("utf-8")
    refused = call("inspect", "unfold", run, "--steps", 7, "--out", tmp_path / "graph.svg")
    assert refused.code == 2
    told = "edge gradients: the run keeps no sequence of 7 steps, but of 1 to 6; take another number of steps"
    assert refused.err == f"throughtime: error: {told}\n"
    refused = call("inspect", "unfold", run, "--data", "a.txt", "--out", tmp_path / "graph.svg")
    assert refused.code == 2
    assert "--data is text for a language model's run; leave it out" in refused.err


def test_its_gradients_are_measured(call: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    assert call("inspect", "flow", run, "--out", tmp_path / "flow.png").code == 0
    assert (tmp_path / "flow.png").stat().st_size > 1000


def test_a_text_is_missing_for_a_language_model(call: Callable[..., Any], tiny_run: Path) -> None:
    refused = call("evaluate", tiny_run)
    assert refused.code == 2
    assert "a language model is evaluated on a text; name it with --data" in refused.err
