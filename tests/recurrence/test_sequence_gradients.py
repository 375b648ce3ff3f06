"""Each sequence's gradient: against the batch with that row alone, against `.grad`, and clipped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import throughtime as tt
from throughtime.cells.gru import GRUState
from throughtime.errors import UsageError
from throughtime.kernels.native import library

NATIVE = library.missing_reason() is None
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn": ("RNN", {}),
    "lstm": ("LSTM", {}),
    "lstm projected with peepholes": ("LSTM", {"proj_size": 2, "peepholes": True}),
    "lstm layer norm": ("LSTM", {"layer_norm": True}),
    "gru": ("GRU", {}),
    "gru reset before": ("GRU", {"reset_after": False}),
}
CLOSE: dict[str, float] = {"rtol": 1e-10, "atol": 1e-12}


def layer_of(kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    name, own = KINDS[kind]
    return getattr(tt.nn, name)(3, 5, **{"dtype": torch.float64, **own, **options})


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def row_losses(outputs: Tensor, final_state: Any) -> Tensor:
    """(B,) of everything that a layer returns."""
    state = final_state if isinstance(final_state, Tensor) else torch.cat(list(final_state), -1)
    return outputs.exp().sum((0, 2)) + state.square().sum((0, 2))


def gradients(layer: Any, loss: Tensor) -> dict[str, Tensor]:
    layer.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in layer.named_parameters()}


@settings(max_examples=10)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    num_layers=st.integers(1, 2),
    bidirectional=st.booleans(),
    lengths=st.lists(st.integers(0, 5), min_size=3, max_size=3),
    engine=st.sampled_from(["auto", "auto", "reference"]),
)
def test_a_row_is_the_batch_with_that_row_alone_and_all_sum_to_the_gradient(
    kind: str, num_layers: int, bidirectional: bool, lengths: list[int], engine: str
) -> None:
    layer = layer_of(kind, num_layers=num_layers, bidirectional=bidirectional, engine=engine)
    x = drawn(5, 3, 3)
    found = tt.bptt.sequence_gradients(layer, x, row_losses, lengths=lengths)
    native = NATIVE and engine == "auto" and "layer norm" not in kind
    assert set(found.engines) == {"native" if native else "reference"}
    losses = row_losses(*layer(x, lengths=lengths))
    torch.testing.assert_close(found.loss, losses.detach(), **CLOSE)
    whole = gradients(layer, losses.sum())
    for name, gradient in whole.items():
        torch.testing.assert_close(found.parameters[name].sum(0), gradient, **CLOSE)
    for b, length in enumerate(lengths):
        alone = gradients(layer, row_losses(*layer(x[:, b : b + 1], lengths=[length])).sum())
        torch.testing.assert_close({n: g[b] for n, g in found.parameters.items()}, alone, **CLOSE)


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_norms_and_projections_are_those_of_the_whole(kind: str, engine: str) -> None:
    layer = layer_of(kind, num_layers=2, engine=engine)
    x = drawn(5, 3, 3)
    whole = tt.bptt.sequence_gradients(layer, x, row_losses).parameters
    norms = tt.bptt.sequence_gradients(layer, x, row_losses, reduce="norm").parameters
    torch.testing.assert_close(norms, {name: g.flatten(1).norm(dim=1) for name, g in whole.items()}, **CLOSE)
    direction = drawn(*whole["weight_hh_l1"].shape[1:], seed=2)
    projected = tt.bptt.sequence_gradients(layer, x, row_losses, reduce={"weight_hh_l1": direction}).parameters
    expected = (whole["weight_hh_l1"] * direction).sum((1, 2))
    torch.testing.assert_close(projected, {"weight_hh_l1": expected}, **CLOSE)


def test_steps_and_sequences_are_sums_of_the_same() -> None:
    layer, x = layer_of("gru"), drawn(5, 3, 3)
    by_step = tt.bptt.step_gradients(layer, x, lambda o, s: row_losses(o, s).sum()).parameters
    by_row = tt.bptt.sequence_gradients(layer, x, lambda o, s: row_losses(o, s).sum()).parameters
    for name, gradient in by_step.items():
        torch.testing.assert_close(gradient.sum(0), by_row[name].sum(0), **CLOSE)


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_of_a_loss_that_compares_rows_it_is_that_of_copies(engine: str) -> None:
    layer, x = layer_of("rnn", engine=engine), drawn(4, 2, 3)

    def loss(outputs: Tensor) -> Tensor:
        return (outputs[:, 0] * outputs[:, 1]).sum()

    copies = [layer_of("rnn", engine=engine) for _ in range(2)]
    outputs = torch.cat([copy(x[:, b : b + 1])[0] for b, copy in enumerate(copies)], 1)
    loss(outputs).backward()
    found = tt.bptt.sequence_gradients(layer, x, loss)
    for b, copy in enumerate(copies):
        expected = {name: parameter.grad for name, parameter in copy.named_parameters()}
        torch.testing.assert_close({n: g[b] for n, g in found.parameters.items()}, expected, **CLOSE)


class Decaying(tt.Cell):
    """A cell of one's own."""

    State = GRUState

    def __init__(self) -> None:
        super().__init__(3, 5)
        self.W = torch.nn.Linear(5, 5, dtype=torch.float64)
        self.U = torch.nn.Linear(3, 5, dtype=torch.float64)

    def step(self, projected: Tensor, state: Any) -> GRUState:
        return GRUState(0.5 * state.h + torch.tanh(self.U(projected) + self.W(state.h)))


def test_a_cell_of_ones_own() -> None:
    torch.manual_seed(0)
    cell, x, lengths = Decaying(), drawn(4, 3, 3), [2, 4, 0]
    found = tt.bptt.sequence_gradients(cell, x, lambda outputs: outputs.square().sum((0, 2)), lengths=lengths)
    for b, length in enumerate(lengths):
        outputs, _ = tt.unfold(cell, x[:, b : b + 1], lengths=[length])
        expected = gradients(cell, outputs.square().sum())
        torch.testing.assert_close({name: g[b] for name, g in found.parameters.items()}, expected, **CLOSE)


def test_masks_drawn_in_training_are_the_same_by_the_same_seed() -> None:
    layer = layer_of("lstm", num_layers=2, zoneout=0.3, recurrent_dropout=0.4, variational_dropout=0.2)
    found = {}
    for engine in ("auto", "reference"):
        layer.engine = engine
        torch.manual_seed(3)
        found[engine] = tt.bptt.sequence_gradients(layer, drawn(5, 3, 3), row_losses, lengths=[5, 0, 3]).parameters
    torch.testing.assert_close(found["auto"], found["reference"], **CLOSE)


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_clipping_leaves_of_each_sequence_what_it_may_have(kind: str, engine: str) -> None:
    layer = layer_of(kind, bidirectional=True, engine=engine)
    x, lengths = drawn(5, 4, 3), [5, 1, 0, 3]
    whole = tt.bptt.sequence_gradients(layer, x, row_losses, lengths=lengths).parameters
    norms = torch.stack([g.flatten(1).square().sum(1) for g in whole.values()]).sum(0).sqrt()
    limit = float(norms.sort().values[2])  # one sequence is longer, one as long, one shorter
    found = tt.bptt.clip_by_sequence(layer, x, row_losses, limit * 0.999, lengths=lengths)
    torch.testing.assert_close(found.norms, norms, **CLOSE)
    scales = (limit * 0.999 / norms).clamp(max=1)
    assert sorted((scales < 1).tolist()) == [False, False, True, True]
    for name, gradient in whole.items():
        torch.testing.assert_close(found.parameters[name], torch.tensordot(scales, gradient, 1), **CLOSE)


def test_clipped_gradients_are_of_their_parameters_type() -> None:
    layer = tt.nn.GRU(3, 5, dtype=torch.bfloat16)
    found = tt.bptt.clip_by_sequence(layer, torch.randn(4, 2, 3, dtype=torch.bfloat16), lambda h: h.sum((0, 2)), 0.1)
    for name, parameter in layer.named_parameters():
        parameter.grad = found.parameters[name]  # torch takes no other
    assert layer.weight_hh_l0.grad.any()


def test_clipping_at_no_limit_is_the_gradient() -> None:
    layer, x = layer_of("lstm"), drawn(5, 3, 3)
    found = tt.bptt.clip_by_sequence(layer, x, lambda outputs: outputs[2].sum(), float("inf"))
    torch.testing.assert_close(found.parameters, gradients(layer, layer(x)[0][2].sum()), **CLOSE)


@pytest.mark.usefixtures("unchecked_shapes")
class TestErrors:
    def test_neither_layer_nor_cell(self) -> None:
        with pytest.raises(UsageError, match=r"sequence_gradients: expected a tt.nn layer or a tt.Cell, got Linear;"):
            tt.bptt.sequence_gradients(torch.nn.Linear(3, 5), drawn(4, 2, 3), lambda outputs: outputs.sum())

    def test_a_loss_of_another_shape(self) -> None:
        with pytest.raises(
            UsageError, match=r"sequence_gradients: loss must be of shape \(\) or \(2,\), got \(4, 2\); sum"
        ):
            tt.bptt.sequence_gradients(layer_of("gru"), drawn(4, 2, 3), lambda outputs: outputs.sum(-1))

    def test_more_than_may_be_taken(self) -> None:
        with pytest.raises(
            UsageError, match=r"sequence_gradients: whole gradients of 2 sequences take 0.0 GiB, more than"
        ):
            tt.bptt.sequence_gradients(layer_of("gru"), drawn(4, 2, 3), lambda outputs: outputs.sum(), max_bytes=1)

    def test_a_limit_that_is_none(self) -> None:
        for limit in (0.0, float("nan")):
            with pytest.raises(UsageError, match=f"clip_by_sequence: max_norm must be positive, got {limit}"):
                tt.bptt.clip_by_sequence(layer_of("gru"), drawn(4, 2, 3), lambda outputs: outputs.sum(), limit)
