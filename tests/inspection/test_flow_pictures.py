"""The flow of gradients of layers, models and runs, and its pictures."""

from __future__ import annotations

import inspect
import json
import math
import shlex
import textwrap
from pathlib import Path

import pytest
import torch
from PIL import Image

import throughtime as tt
from throughtime.cli.inspect_flow import inspect_flow
from throughtime.data.sequences import Sequences, TensorSource
from throughtime.errors import DataError, RunFolderError, UsageError
from throughtime.inspection.flow import flow, open_run
from throughtime.inspection.flow_pictures import draw_flow
from throughtime.recurrence.flow import Flow, LayerFlow
from throughtime.tasks import design, language

KEYS = (
    "model.hidden_size=12", "model.embedding_size=8", "training.batch_size=4", "training.window=24",
    "training.warmup_steps=2", "training.max_steps=4", "training.precision=fp32", "training.device=cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two trained runs, an RNN's and an LSTM's."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "book.txt").write_text(inspect.getsource(shlex), "utf-8")
    for cell in ("rnn", "lstm"):
        language.train([str(folder / "book.txt")], folder / cell, overrides=[*KEYS, f"model.cell={cell}"])
    return [folder / "rnn", folder / "lstm"]


# -- what is measured ----------------------------------------------------------------------------------------------


def test_layers_models_and_runs_are_told_apart(runs: list[Path]) -> None:
    torch.manual_seed(0)
    layer = tt.nn.LSTM(3, 5, recurrent_dropout=0.5)
    inputs = torch.randn(9, 2, 3)
    before = torch.random.get_rng_state()
    found = flow(layer, inputs, lambda h: h.sum(-1), at=[8])
    assert torch.equal(torch.random.get_rng_state(), before)  # no mask was drawn
    assert layer.training
    assert found.by_lag[0] == pytest.approx(math.sqrt(5))
    model = tt.models.LanguageModel(vocabulary_size=7, hidden_size=5, embedding_size=4)
    tokens = torch.randint(7, (10, 2))
    assert flow(model, tokens[:-1], targets=tokens[1:], at=[8]).by_lag.shape == (9,)
    of_run = flow(runs[1], at=4)
    opened = open_run(runs[1])
    again = flow(opened.model, *opened.arguments, at=4, **opened.call)
    assert torch.equal(of_run.by_lag, again.by_lag)
    assert of_run.by_lag.shape == (24,)
    assert not torch.equal(of_run.by_lag, flow(str(runs[0]), at=4).by_lag)


def test_a_run_is_measured_on_another_text(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text(inspect.getsource(textwrap), "utf-8")
    (tmp_path / "short.txt").write_text("import", "utf-8")
    assert not torch.equal(flow(runs[1]).by_lag, flow(runs[1], data=[str(tmp_path / "other.txt")]).by_lag)
    assert len(flow(runs[1], data=[str(tmp_path / "short.txt")]).by_lag) < 10


def test_the_run_of_a_design_is_measured_on_the_sequences_that_it_keeps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tt.models.HiddenRecurrent(input_size=2, output_size=3, hidden_size=6)
    data = Sequences(torch.randint(3, (9, 12)), torch.randn(9, 12, 2), lengths=torch.randint(5, 10, (12,)))
    settings = {"max_steps": 2, "device": "cpu", "precision": "fp32"}
    design.train(model, TensorSource(data, 4), data, tmp_path / "run", **settings)
    found = flow(tmp_path / "run", at=[3])
    few = data.select(torch.arange(8))
    again = flow(model, few.x, targets=few.targets, lengths=few.lengths, at=[3])
    torch.testing.assert_close(found.by_lag, again.by_lag)
    with pytest.raises(UsageError, match="data= is text for a language model's run; leave it out: the run keeps seq"):
        flow(tmp_path / "run", data=["a.txt"])


def test_losses_that_are_not_there_do_not_count() -> None:
    """A design with one loss for a whole sequence has it at the last step alone."""
    torch.manual_seed(0)
    model = tt.models.SequenceSummary(input_size=2, output_size=3, hidden_size=6)
    inputs, targets = torch.randn(9, 4, 2), torch.randint(3, (4,))
    found = flow(model, inputs, targets=targets)
    assert found.by_step[:-1].isnan().all()
    torch.testing.assert_close(found.by_lag, flow(model, inputs, targets=targets, at=[8]).by_lag)


def test_what_cannot_be_measured_is_said(runs: list[Path], tmp_path: Path) -> None:
    x = torch.zeros(3, 1, 2)
    with pytest.raises(
        UsageError, match="flow: a run brings its own inputs and loss; give data= to measure on another"
    ):
        flow(runs[0], x)
    with pytest.raises(UsageError, match="data= is for run folders, got a LSTM; give inputs"):
        flow(tt.nn.LSTM(2, 3), x, data=["a.txt"])
    with pytest.raises(UsageError, match=r"LSTM needs inputs, got none; give inputs \(T, B, input_size\)"):
        flow(tt.nn.LSTM(2, 3))
    with pytest.raises(UsageError, match="LanguageModel has a loss of its own; give targets= and no loss"):
        flow(tt.models.LanguageModel(vocabulary_size=3, hidden_size=2), x, lambda h: h.sum(-1))
    with pytest.raises(UsageError, match=r"expected a tt.nn layer or a tt.Cell, got Linear"):
        flow(torch.nn.Linear(2, 2), x)
    with pytest.raises(RunFolderError, match=r"no such folder; check the path, or train into it first"):
        flow(tmp_path / "missing")
    (tmp_path / "empty.txt").write_text("", "utf-8")
    with pytest.raises(DataError):
        flow(runs[0], data=[str(tmp_path / "empty.txt")])


# -- pictures ------------------------------------------------------------------------------------------------------


def made_up(rate: float, jacobians: bool = True, layers: int = 1) -> Flow:
    """Norms rate^k of losses at 9 and 19, two sequences."""
    lags = torch.arange(20, dtype=torch.float64)
    norms = (rate**lags).expand(2, 2, 20).clone()
    norms[0, :, 10:] = torch.nan
    values = (rate ** torch.tensor([[[1.0]], [[4.0]], [[19.0]]])).double().expand(3, 2, 1) if jacobians else None
    layer = LayerFlow("made up", {"h": norms}, values, {})
    return Flow(torch.tensor([9, 19]), (1, 4, 19) if jacobians else (), (layer,) * layers)


def shades(path: Path) -> set[int]:
    with Image.open(path) as picture:
        return set(picture.convert("L").tobytes())


def test_pictures_have_many_shades_in_grey_and_are_the_same_each_time(tmp_path: Path) -> None:
    flows = {"RNN": made_up(0.5), "LSTM": made_up(0.95), "GRU": made_up(1.3)}
    for name in ("flow.png", "flow.svg", "again.svg"):
        draw_flow(flows, tmp_path / name)
    assert (tmp_path / "again.svg").read_bytes() == (tmp_path / "flow.svg").read_bytes()
    with Image.open(tmp_path / "flow.png") as picture:
        assert picture.size[0] > picture.size[1] > 900
    assert len(shades(tmp_path / "flow.png")) > 60
    assert (tmp_path / "flow.svg").read_text("utf-8").startswith("<?xml")


def test_a_steeper_fall_is_another_picture(tmp_path: Path) -> None:
    for name, rate in (("a", 0.5), ("b", 0.9)):
        draw_flow({"RNN": made_up(rate)}, tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("rate", [0.0, 1e-20, 1.0, 1e20])
def test_nothing_and_infinity_can_be_drawn(tmp_path: Path, rate: float) -> None:
    draw_flow({"one": made_up(rate, jacobians=False, layers=2)}, tmp_path / "flow.png")
    assert len(shades(tmp_path / "flow.png")) > 10


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected a name ending in .png, .svg, .pdf, got '.jpg'"):
        draw_flow({"RNN": made_up(0.5)}, tmp_path / "flow.jpg")
    with pytest.raises(UsageError, match="expected 1 to 6 layers in all, got 7; draw fewer at once"):
        draw_flow({"deep": made_up(0.5, layers=7)}, tmp_path / "flow.png")
    with pytest.raises(UsageError, match="expected 1 to 6 layers in all, got 0"):
        draw_flow({}, tmp_path / "flow.png")


# -- the command ---------------------------------------------------------------------------------------------------


def test_the_command_prints_tables_and_draws(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect_flow(runs, out=tmp_path / "both.svg", losses=3, lags=8, jacobians=1)
    printed = capsys.readouterr()
    assert printed.out.startswith("rnn\nRNN layer 0: ‖∂L(t)/∂h(t−k)‖ by lag k\n")
    assert "\n\nlstm\nLSTM layer 0" in printed.out
    assert printed.err == f"picture: {tmp_path / 'both.svg'}\n"
    assert (tmp_path / "both.svg").exists()
    inspect_flow(runs[:1], losses=3, jacobians=0, json=True)
    read = json.loads(capsys.readouterr().out)
    assert read["rnn"]["layers"][0]["by_lag"] == flow(runs[0], at=3).by_lag.tolist()
    assert (runs[0] / "flow.png").exists()
