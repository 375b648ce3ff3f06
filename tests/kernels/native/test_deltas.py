"""What the native backward pass hands out of each step: δ(t), dL/dh(t) and dL/dc(t), against the reference's.

δ(t) is the gradient of something added to b + U x(t), which autograd finds by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import throughtime as tt
from throughtime.errors import EngineError
from throughtime.kernels import Recurrence
from throughtime.kernels.native import arguments, library
from throughtime.kernels.native.autograd import BackwardPass, run_differentiably
from throughtime.kernels.reference import ReferenceEngine

CELLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "rnn": (tt.nn.RNNCell, {}),
    "rnn relu": (tt.nn.RNNCell, {"nonlinearity": "relu"}),
    "lstm": (tt.nn.LSTMCell, {}),
    "lstm with peepholes": (tt.nn.LSTMCell, {"peepholes": True}),
    "lstm projected": (tt.nn.LSTMCell, {"proj_size": 5}),
    "gru": (tt.nn.GRUCell, {}),
    "gru reset before": (tt.nn.GRUCell, {"reset_after": False}),
}
ISAS = library.available_isas() if library.missing_reason() is None else ()
every_isa = pytest.mark.parametrize(
    "isa", ISAS or [pytest.param("none", marks=pytest.mark.skip(reason=str(library.missing_reason())))]
)
# More rows than a backward pass takes at a time.
T, B, I, H = 15, 19, 3, 18  # noqa: E741


@contextmanager
def on(isa: str, threads: int = 1) -> Iterator[None]:
    """That library, so many threads whatever the size; new tensors are NaN, so that what nobody wrote shows."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        with (
            mock.patch.object(library, "load", return_value=library.load_isa(isa)),
            mock.patch.object(arguments, "_SMALL", 0),
        ):
            yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(before)


class Nudged:
    """A cell with something added to b + U x(t), and each state it passes on told of."""

    family = "custom"

    def __init__(self, cell: Any, added: Tensor) -> None:
        self.cell, self.added = cell, added
        self.states: list[Any] = []

    def project_inputs(self, inputs: Tensor) -> Tensor:
        return self.cell.project_inputs(inputs) + self.added

    def advance(self, projected: Tensor, state: Any, recurrent_mask: Tensor | None) -> Any:
        after, gates = self.cell.advance(projected, state, recurrent_mask)
        self.states.append(after)
        for field in after:
            field.retain_grad()
        return after, gates


def call_of(kind: str, dtype: torch.dtype, *, ragged: bool, reverse: bool) -> Recurrence:
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(3)
    cell_type, options = CELLS[kind]
    cell = cell_type(I, H, dtype=torch.float64, **options).to(dtype)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    call = cell.recurrence(draw(T, B, I), tuple(draw(B, size) for size in cell.state_sizes()))
    lengths = torch.randint(0, T + 1, (B,), generator=generator) if ragged else None
    mask = (draw(B, cell.state_sizes()[0]) > 0).to(dtype) * 2
    resets = None if reverse else torch.rand(T, B, generator=generator) < 0.1
    if resets is not None and lengths is not None:
        resets &= torch.arange(T)[:, None] < lengths
    return replace(call, lengths=lengths, reverse=reverse, recurrent_mask=mask, resets=resets)


def loss_of(unfolded: Any) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    results = [unfolded.outputs, *unfolded.final_state]
    draws = (torch.randn(found.shape, generator=generator, dtype=torch.float64).to(found.dtype) for found in results)
    return torch.stack([(found * draw).sum() for found, draw in zip(results, draws, strict=True)]).sum()


def expected(call: Recurrence) -> tuple[Tensor, list[Tensor]]:
    """δ(t) (T, B, G · H), and dL/dh(t), dL/dc(t), in time's own order."""
    gates = call.cell.project_inputs(call.inputs[:1]).shape[-1]  # type: ignore[attr-defined]
    added = call.inputs.new_zeros(T, B, gates, requires_grad=True)
    nudged = Nudged(call.cell, added)
    loss_of(ReferenceEngine().run(replace(call, cell=nudged))).backward()
    states = nudged.states[::-1] if call.reverse else nudged.states
    assert added.grad is not None
    return added.grad, [torch.stack([field.grad for field in fields]) for fields in zip(*states, strict=True)]


@every_isa
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", sorted(CELLS))
def test_every_step_is_handed_out_as_the_reference_has_it(isa: str, kind: str, reverse: bool, ragged: bool) -> None:
    delta, states = expected(call_of(kind, torch.float64, ragged=ragged, reverse=reverse))
    # The second run has units or rows for each of two threads.
    for dtype, tolerance, threads in ((torch.float64, 1e-11, 1), (torch.float32, 2e-4, 2)):
        call = call_of(kind, dtype, ragged=ragged, reverse=reverse)
        found: list[BackwardPass] = []
        with on(isa, threads):
            loss_of(run_differentiably(call, found.append)).backward()
        (only,) = found
        torch.testing.assert_close(
            only.deltas.sums[..., : delta.shape[-1]].double(), delta, rtol=tolerance, atol=tolerance
        )
        for own, other in zip(only.deltas[1:], states, strict=False):
            torch.testing.assert_close(own.double(), other, rtol=tolerance, atol=tolerance)
        weights: Any = call.cell.weights  # type: ignore[attr-defined]
        assert all(weight is None or weight.grad is None for weight in weights)


@every_isa
def test_the_last_slot_is_what_the_other_product_has(isa: str) -> None:
    for kind in ("gru", "lstm projected"):
        call = call_of(kind, torch.float64, ragged=True, reverse=False)
        weights: Any = call.cell.weights  # type: ignore[attr-defined]
        found: list[BackwardPass] = []
        with on(isa):
            loss_of(run_differentiably(call, found.append)).backward()
        loss_of(ReferenceEngine().run(call)).backward()
        last = found[0].deltas.sums.chunk(found[0].arguments.saved_values, 2)[-1]
        if kind == "gru":
            torch.testing.assert_close(last.sum((0, 1)), weights.bias_hh.grad[2 * H :])
        else:
            torch.testing.assert_close(last[..., :5], found[0].deltas.h)


@every_isa
def test_compiled_code_that_is_older_says_so(isa: str) -> None:
    module = library.load_isa(isa)

    class Older:
        __name__ = "_native_of_before"

        def __getattr__(self, name: str) -> Any:
            return getattr(module, name)

        def backward(self, cell: str, format_: str, sizes: Any, reverse: bool, tensors: Any, threads: int) -> None:
            known = {name: place for name, place in tensors.items() if name not in ("d_sums", "d_states")}
            module.backward(cell, format_, sizes, reverse, known, threads)

    call = call_of("rnn", torch.float32, ragged=False, reverse=False)
    with mock.patch.object(library, "load", return_value=Older()):
        loss_of(run_differentiably(call)).backward()
        with pytest.raises(
            EngineError, match="native engine: _native_of_before is older than throughtime's Python code"
        ):
            loss_of(run_differentiably(call, lambda _: None)).backward()
