"""Which engine runs, and the account of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import throughtime as tt
from throughtime.errors import EngineError, UsageError


class Plus(tt.Cell):
    """A cell of one's own."""

    State = tt.nn.RNNCell.State

    def step(self, projected: Tensor, state: object) -> object:
        return self.State(projected + state.h)


def test_the_account_of_a_layer_names_each_layer_and_direction() -> None:
    layer = tt.nn.LSTM(2, 3, num_layers=2, bidirectional=True)
    told = tt.kernels.explain(layer, torch.zeros(4, 2, 2), lengths=[4, 1])
    assert told.engines == ("torch",) * 4
    assert (
        str(told)
        == "LSTM layer 0: torch\nLSTM layer 0 reverse: torch\nLSTM layer 1: torch\nLSTM layer 1 reverse: torch"
    )


def test_the_account_says_why_not() -> None:
    layer = tt.nn.GRU(2, 3, zoneout=0.1)
    told = tt.kernels.explain(layer, torch.zeros(4, 2, 2))
    assert str(told) == "GRU layer 0: reference\n    not torch: PyTorch's fused kernels have no zoneout"
    assert told.choices[0].refused == (("torch", "PyTorch's fused kernels have no zoneout"),)
    asked = tt.kernels.explain(tt.nn.GRU(2, 3, engine="reference"), torch.zeros(4, 2, 2))
    assert str(asked) == "GRU layer 0: reference\n    not torch: engine='reference' was asked for"
    layer.engine = "torch"
    assert tt.kernels.explain(layer, torch.zeros(4, 2, 2)).engines == ("none",)


def test_the_account_of_another_engine_than_the_layers_own() -> None:
    layer, x = tt.nn.GRU(2, 3), torch.zeros(4, 2, 2)
    assert tt.kernels.explain(layer, x, engine="reference").engines == ("reference",)
    assert layer.engine == "auto"
    with pytest.raises(EngineError, match="explain: engine must be one of auto, torch, reference, got 'gpu'"):
        tt.kernels.explain(layer, x, engine="gpu")


def test_the_account_of_states_and_packed_sequences_and_cells() -> None:
    layer, x = tt.nn.GRU(2, 3), torch.zeros(4, 2, 2)
    assert tt.kernels.explain(layer, x, return_states="all").engines == ("reference",)
    assert tt.kernels.explain(layer, pack_padded_sequence(x, torch.tensor([4, 2]))).engines == ("torch",)
    assert tt.kernels.explain(layer, x, state=torch.zeros(1, 2, 3)).engines == ("torch",)
    assert str(tt.kernels.explain(tt.nn.LSTMCell(2, 3), x, lengths=torch.tensor([1, 2]))) == "LSTMCell: torch"
    told = tt.kernels.explain(Plus(2, 2), x, engine="auto")
    assert str(told) == "Plus: reference\n    not torch: PyTorch has no fused kernel for a cell of one's own"


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
    layer.engine = "native"
    with pytest.raises(EngineError, match=r"kernels\.run: engine must be one of auto, torch, reference, got 'native'"):
        layer(torch.zeros(4, 2, 2))
    assert tt.kernels.engine_names() == ("auto", "torch", "reference")


def test_a_cell_of_ones_own_has_no_recurrent_mask() -> None:
    cell = Plus(2, 2)
    with pytest.raises(UsageError, match=r"Plus: recurrent dropout needs a built-in cell; mask h within step\(\)"):
        cell.advance(torch.zeros(1, 2), cell.State(torch.zeros(1, 2)), torch.ones(1, 2))


def test_a_third_engine_needs_no_change_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert tt.kernels.explain(tt.nn.RNN(4, 4, bidirectional=True), x).engines == ("doubling", "torch")
    with pytest.raises(EngineError, match="engine='doubling' cannot run this: doubles forwards only"):
        tt.nn.RNN(4, 4, engine="doubling", bidirectional=True)(x)
