"""Which engine runs, and the account of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import throughtime as tt
from throughtime.errors import EngineError, UsageError
from throughtime.kernels.native import engine as native
from throughtime.kernels.native import library

MISSING = library.missing_reason()
NOT_NATIVE = "\n    not native: it is not built here"
NORM = "layer normalisation inside the cell"


@pytest.fixture(params=["native", "torch"])
def fastest(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The engine of a plain layer: where the native one is built, and where it is not."""
    if request.param == "torch":
        monkeypatch.setattr(native, "_missing_reason", lambda: "it is not built here")
    elif MISSING is not None:
        pytest.skip(MISSING)
    return str(request.param)


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it is not built."""
    monkeypatch.setattr(native, "_missing_reason", lambda: "it is not built here")


class Plus(tt.Cell):
    """A cell of one's own."""

    State = tt.nn.RNNCell.State

    def step(self, projected: Tensor, state: object) -> object:
        return self.State(projected + state.h)


def test_the_account_of_a_layer_names_each_layer_and_direction(fastest: str) -> None:
    layer = tt.nn.LSTM(2, 3, num_layers=2, bidirectional=True)
    told = tt.kernels.explain(layer, torch.zeros(4, 2, 2), lengths=[4, 1])
    assert told.engines == (fastest,) * 4
    line = fastest if fastest == "native" else fastest + NOT_NATIVE
    assert str(told) == "\n".join(f"LSTM layer {where}: {line}" for where in ("0", "0 reverse", "1", "1 reverse"))


@pytest.mark.usefixtures("without_native")
def test_the_account_says_why_not() -> None:
    layer = tt.nn.GRU(2, 3, zoneout=0.1)
    told = tt.kernels.explain(layer, torch.zeros(4, 2, 2))
    assert str(told) == f"GRU layer 0: reference{NOT_NATIVE}\n    not torch: PyTorch's fused kernels have no zoneout"
    assert told.choices[0].refused == (
        ("native", "it is not built here"),
        ("torch", "PyTorch's fused kernels have no zoneout"),
    )
    asked = tt.kernels.explain(tt.nn.GRU(2, 3, engine="reference"), torch.zeros(4, 2, 2))
    reason = "engine='reference' was asked for"
    assert str(asked) == f"GRU layer 0: reference\n    not native: {reason}\n    not torch: {reason}"
    for engine in ("torch", "native"):
        layer.engine = engine
        assert tt.kernels.explain(layer, torch.zeros(4, 2, 2)).engines == ("none",)


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_the_account_of_what_no_fast_engine_has() -> None:
    told = tt.kernels.explain(tt.nn.GRU(2, 3, layer_norm=True), torch.zeros(4, 2, 2))
    assert str(told) == (
        f"GRU layer 0: reference\n    not native: the native engine has no {NORM}"
        f"\n    not torch: PyTorch's fused kernels have no {NORM}"
    )


def test_the_account_of_another_engine_than_the_layers_own() -> None:
    layer, x = tt.nn.GRU(2, 3), torch.zeros(4, 2, 2)
    assert tt.kernels.explain(layer, x, engine="reference").engines == ("reference",)
    assert layer.engine == "auto"
    with pytest.raises(EngineError, match="explain: engine must be one of auto, native, torch, reference, got 'gpu'"):
        tt.kernels.explain(layer, x, engine="gpu")


def test_the_account_of_states_and_packed_sequences_and_cells(fastest: str) -> None:
    layer, x = tt.nn.GRU(2, 3), torch.zeros(4, 2, 2)
    recording = "native" if fastest == "native" else "reference"
    assert tt.kernels.explain(layer, x, return_states="all").engines == (recording,)
    assert tt.kernels.explain(layer, pack_padded_sequence(x, torch.tensor([4, 2]))).engines == (fastest,)
    assert tt.kernels.explain(layer, x, state=torch.zeros(1, 2, 3)).engines == (fastest,)
    cell = tt.kernels.explain(tt.nn.LSTMCell(2, 3), x, lengths=torch.tensor([1, 2]))
    assert str(cell).startswith(f"LSTMCell: {fastest}")


@pytest.mark.usefixtures("without_native")
def test_the_account_of_a_cell_of_ones_own() -> None:
    told = tt.kernels.explain(Plus(2, 2), torch.zeros(4, 2, 2), engine="auto")
    reason = "PyTorch has no fused kernel for a cell of one's own"
    assert str(told) == f"Plus: reference{NOT_NATIVE}\n    not torch: {reason}"


def test_asking_changes_no_result() -> None:
    layer, x = tt.nn.LSTM(2, 3, recurrent_dropout=0.5, weight_dropout=0.5, zoneout=0.1), torch.zeros(4, 2, 2)
    before = torch.get_rng_state()
    tt.kernels.explain(layer, x)
    assert torch.equal(torch.get_rng_state(), before)


def test_asking_about_something_else() -> None:
    with pytest.raises(
        UsageError, match=r"explain: expected a tt\.nn layer or a tt\.Cell, got Linear; .*replace_torch_layers"
    ):
        tt.kernels.explain(torch.nn.Linear(2, 2), torch.zeros(1, 2))


def test_the_account_of_what_cannot_be() -> None:
    layer = tt.nn.LSTM(2, 3, bidirectional=True)
    with pytest.raises(UsageError, match="resets: a sequence cannot begin anew"):
        tt.kernels.explain(layer, torch.zeros(4, 2, 2), resets=torch.zeros(4, 2, dtype=torch.bool))


def test_an_engine_that_does_not_exist() -> None:
    layer = tt.nn.LSTM(2, 3)
    layer.engine = "gpu"
    with pytest.raises(
        EngineError, match=r"kernels\.run: engine must be one of auto, native, torch, reference, got 'gpu'"
    ):
        layer(torch.zeros(4, 2, 2))
    assert tt.kernels.engine_names() == ("auto", "native", "torch", "reference")


@pytest.mark.usefixtures("without_native")
def test_an_engine_that_is_not_built() -> None:
    layer = tt.nn.LSTM(2, 3, engine="native")
    with pytest.raises(EngineError) as raised:
        layer(torch.zeros(4, 2, 2))
    assert str(raised.value) == (
        "engine='native' cannot run this: it is not built here; engine='auto' takes one that can"
    )


def test_a_cell_of_ones_own_has_no_recurrent_mask() -> None:
    cell = Plus(2, 2)
    with pytest.raises(UsageError, match=r"Plus: recurrent dropout needs a built-in cell; mask h within step\(\)"):
        cell.advance(torch.zeros(1, 2), cell.State(torch.zeros(1, 2)), torch.ones(1, 2))


def test_another_engine_needs_no_change_elsewhere(monkeypatch: pytest.MonkeyPatch, fastest: str) -> None:
    from throughtime.kernels import dispatch

    class Doubling:
        name = "doubling"

        def refusal(self, call: tt.kernels.Recurrence) -> str | None:
            return "doubles forwards only" if call.reverse else None

        def run(self, call: tt.kernels.Recurrence) -> tt.kernels.Unfolded:
            return tt.kernels.Unfolded(2 * call.inputs, call.state)

    monkeypatch.setattr(dispatch, "ENGINES", (Doubling(), *dispatch.ENGINES))
    x = torch.ones(3, 2, 4)
    assert torch.equal(tt.nn.RNN(4, 4, engine="doubling")(x)[0], 2 * x)
    assert tt.kernels.explain(tt.nn.RNN(4, 4, bidirectional=True), x).engines == ("doubling", fastest)
    with pytest.raises(EngineError, match="engine='doubling' cannot run this: doubles forwards only"):
        tt.nn.RNN(4, 4, engine="doubling", bidirectional=True)(x)
