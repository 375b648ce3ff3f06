"""`checkpoint=` of whole layers: the gradients of full BPTT, and what goes with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves

import throughtime as tt
from throughtime.errors import UsageError
from throughtime.kernels.native import library

needs_native = pytest.mark.skipif(
    library.missing_reason() is not None, reason="bytes and rounding of the native engine, which is missing"
)

T, B, INPUT, H = 13, 3, 4, 5
LAYERS: dict[str, Any] = {
    "lstm": lambda: tt.nn.LSTM(INPUT, H, 2, dropout=0.3, recurrent_dropout=0.2),
    "lstm in two directions": lambda: tt.nn.LSTM(INPUT, H, 2, bidirectional=True, proj_size=3, zoneout=0.2),
    "gru batch first": lambda: tt.nn.GRU(INPUT, H, 2, batch_first=True, residual=True, variational_dropout=0.2),
    "rnn": lambda: tt.nn.RNN(INPUT, H, weight_dropout=0.3),
    "stack": lambda: tt.nn.CellStack([tt.nn.LSTMCell(INPUT, H), tt.nn.GRUCell(H, H)], dropout=0.2, residual=True),
    "stack in two directions": lambda: tt.nn.CellStack([tt.nn.GRUCell(INPUT, H)], backward=[tt.nn.RNNCell(INPUT, H)]),
}


def made(kind: str) -> Any:
    torch.manual_seed(0)
    return LAYERS[kind]().double()


def gradients(layer: Any, x: Tensor, **options: Any) -> list[Tensor]:
    """Of the inputs and all parameters, from everything the layer returns."""
    torch.manual_seed(3)
    leaf = x.clone().requires_grad_()
    results = tree_leaves(layer(leaf, **options))
    loss = torch.stack([(result.sin() * (index + 1)).sum() for index, result in enumerate(results)]).sum()
    return [*(result.detach() for result in results), *torch.autograd.grad(loss, [leaf, *layer.parameters()])]


@pytest.mark.parametrize("lengths", [None, [13, 6, 0]])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("checkpoint", ["sqrt", 3])
def test_results_and_gradients_are_those_of_full_bptt(kind: str, checkpoint: Any, lengths: list[int] | None) -> None:
    layer, first = made(kind), kind == "gru batch first"
    x = torch.randn(B, T, INPUT, dtype=torch.float64) if first else torch.randn(T, B, INPUT, dtype=torch.float64)
    found = gradients(layer, x, lengths=lengths, checkpoint=checkpoint)
    torch.testing.assert_close(found, gradients(layer, x, lengths=lengths), rtol=1e-10, atol=1e-12)


@needs_native
def test_a_budget_makes_segments_of_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    from throughtime import kernels

    run, steps = kernels.run, []

    def noted(call: Any, engine: str) -> Any:
        steps.append(len(call.inputs))
        return run(call, engine)

    layer, x = made("stack"), torch.randn(200, 2, INPUT, dtype=torch.float64)
    monkeypatch.setattr(kernels, "run", noted)
    found = gradients(layer, x, checkpoint=tt.bptt.MemoryBudget(40_000))
    assert max(steps) < 100
    torch.testing.assert_close(found, gradients(layer, x), rtol=1e-10, atol=1e-12)


def test_packed_sequences() -> None:
    layer, x = made("lstm").eval(), torch.randn(T, B, INPUT, dtype=torch.float64)
    packed = pack_padded_sequence(x, torch.tensor([13, 6, 2]))
    expected = torch.autograd.grad(layer(packed)[0].data.square().sum(), list(layer.parameters()))
    found = torch.autograd.grad(layer(packed, checkpoint="sqrt")[0].data.square().sum(), list(layer.parameters()))
    torch.testing.assert_close(found, expected)


def test_explain_takes_it() -> None:
    layer, x = made("lstm"), torch.randn(T, B, INPUT, dtype=torch.float64)
    assert tt.kernels.explain(layer, x, checkpoint="sqrt").engines == tt.kernels.explain(layer, x).engines


def test_what_cannot_be_is_said() -> None:
    layer, x = made("lstm"), torch.randn(T, B, INPUT, dtype=torch.float64)
    with pytest.raises(UsageError, match="LSTM: checkpoint= cannot hand out every state and gate; use checkpoint=None"):
        layer(x, checkpoint="sqrt", return_states="all")
    with pytest.raises(UsageError, match="LSTM: checkpoint must be 'sqrt', a number of segments of at least 1, or a M"):
        layer(x, checkpoint="root")
    with pytest.raises(UsageError, match="CellStack: checkpoint must be 'sqrt', a number of segments of at least 1, o"):
        made("stack")(x, checkpoint=0)
