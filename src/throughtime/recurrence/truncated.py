"""Truncated backpropagation through time: BPTT(k2; k1).

Every k1 steps the loss terms of these steps are sent back, over the k2 latest steps and no further:

    block j: the steps from j k1 on, k1 of them (fewer at the end)
    window j: the steps of block j and the k2 - k1 steps before it (fewer at the start)
    what is accumulated: Σ_j ∂ Σ_{t in block j} L(t) / ∂θ, the state before window j taken as a constant

So each L(t) counts once; the last one of a block flows through k2 steps, the first through k2 - k1 + 1. With
k1 = k2 = τ that is full BPTT, with k1 = 1 every L(t) flows through k2 steps, and k1 = k2 is the usual training in
windows with the state carried from each to the next.

Source: Williams & Peng 1990, "An efficient gradient-based algorithm for on-line training of recurrent network
trajectories" (there BPTT(h; h') with h = k2, h' = k1); Sutskever 2013, "Training recurrent neural networks".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from throughtime.cells import Cell
from throughtime.errors import UsageError
from throughtime.recurrence.lengths import checked_lengths
from throughtime.recurrence.unfold import unfold


class Truncated(NamedTuple):
    """The sum of all loss terms, without a graph, and the state behind the last step, to carry on with."""

    loss: Float[Tensor, ""]
    state: Any


def truncated(
    model: nn.Module,
    inputs: Tensor,
    loss: Callable[[Tensor, slice], Tensor],
    *,
    k1: int,
    k2: int,
    state: Any = None,
    lengths: Int[Tensor, " B"] | Sequence[int] | None = None,
) -> Truncated:
    """Run a recurrence over a sequence, adding the gradients of truncated BPTT to `.grad`.

    Args:
        model: a `tt.Cell`, or a layer called as `tt.nn.LSTM` is, of one direction.
        inputs: x(1..τ), (T, B, I); (B, T, I) for a layer with `batch_first`.
        loss: called once for each block, in the order of time, with the block's outputs, in the layout of `inputs`, and
            its steps as a slice of time. It returns the sum of their L(t). Parameters that it uses, of a readout say,
            get their gradients, too. It sees to padding itself: outputs behind a length are zero.
        k1: how many steps lie between two backward passes.
        k2: how many steps each goes back at most; at least k1. Where it is more, the k2 - k1 steps before a block are
            run again for it: k2 / k1 times the work of k1 = k2, and random masks within are drawn anew.
        state: the state before the first step; zeros, or the cell's own, when missing.
        lengths: how many steps each sequence has, in any order, zero allowed.

    The initial state and the inputs, where they require gradients, get theirs by the same rule, once, at the end; they
    may have been made by other networks. Weights stay as they are throughout: an optimiser steps afterwards.

        >>> import torch, throughtime as tt
        >>> lstm, x = tt.nn.LSTM(3, 5), torch.randn(20, 2, 3)
        >>> found = truncated(lstm, x, lambda h, steps: h.square().sum(), k1=4, k2=10)
        >>> found.loss.shape, len(found.state), lstm.weight_hh_l0.grad.shape
        (torch.Size([]), 2, torch.Size([20, 5]))

    Raises:
        UsageError: k1 and k2 are not whole numbers with 1 ≤ k1 ≤ k2, the model reads in both directions, the inputs are
            no tensor, or `loss` returns no single number that depends on something to be trained.
        ShapeError: inputs, state or lengths that do not fit.
    """
    _check(model, inputs, k1, k2)
    sequence = _Sequence(model, inputs, lengths)
    initial = _Leaves(sequence.first_state(state))
    before = after = initial.leaves
    total = inputs.new_zeros(())
    for window in _windows(sequence.steps, k1, k2):
        outputs, before, after = sequence.run(window, before)
        value = loss(outputs, slice(window.block, window.end))
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UsageError(
                "truncated: loss must return the sum of L(t) over the block, one number that depends on what is "
                f"trained, got {got}{', which requires no gradient' if isinstance(value, Tensor) else ''}"
            )
        value.backward()  # type: ignore[no-untyped-call]
        sequence.collect(window)
        total = total + value.detach().reshape(())
    sequence.pass_on()
    initial.pass_on()
    return Truncated(total, _mapped(torch.Tensor.detach, after))


def _check(model: nn.Module, inputs: Any, k1: Any, k2: Any) -> None:
    for name, value in (("k1", k1), ("k2", k2)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"truncated: {name} must be a whole number of steps of at least 1, got {value!r}")
    if k2 < k1:
        raise UsageError(
            f"truncated: k2 must be at least k1, got k1={k1} and k2={k2}; "
            "a backward pass over fewer steps than lie between two would leave out loss terms"
        )
    if getattr(model, "bidirectional", False):
        raise UsageError(
            f"truncated: expected a model that reads forward in time, got a bidirectional {type(model).__name__}; "
            "a direction that reads from the end has no state to carry from window to window"
        )
    if not isinstance(inputs, Tensor):
        raise UsageError(f"truncated: inputs must be a padded tensor with lengths=, got {type(inputs).__name__}")


class _Window(NamedTuple):
    """Steps start..end - 1 are run, those from `block` on have the loss; the next window begins at `following`."""

    start: int
    block: int
    end: int
    following: int


def _windows(steps: int, k1: int, k2: int) -> Iterator[_Window]:
    for block in range(0, steps, k1):
        end = min(block + k1, steps)
        yield _Window(max(0, block - (k2 - k1)), block, end, max(0, end - (k2 - k1)))


class _Sequence:
    """A model over the windows of one padded batch."""

    def __init__(self, model: nn.Module, inputs: Tensor, lengths: Any) -> None:
        self._model, self._inputs = model, inputs
        self._axis = 1 if getattr(model, "batch_first", False) and inputs.dim() == 3 else 0
        self.steps = inputs.shape[self._axis]
        self._lengths = checked_lengths(lengths, inputs.transpose(0, self._axis), who=type(model).__name__)
        self._of_inputs = torch.zeros_like(inputs) if inputs.requires_grad else None
        self._leaf: Tensor | None = None

    def first_state(self, state: Any) -> Any:
        """`state`, or what a cell begins with; a layer knows what None means."""
        if state is None and isinstance(self._model, Cell):
            return self._model.initial_state(
                self._inputs.shape[1], dtype=self._inputs.dtype, device=self._inputs.device
            )
        return state

    def run(self, window: _Window, before: Any) -> tuple[Tensor, Any, Any]:
        """The outputs of the window's block, the constant state that the next window begins with, and the last one."""
        part = self._inputs.detach().narrow(self._axis, window.start, window.end - window.start)
        # A tensor of its own: its gradient is this window's.
        self._leaf = part.requires_grad_(self._of_inputs is not None)
        outputs, state, following = [], before, before
        cut = max(window.start, min(window.following, window.end))
        for begin, end in ((window.start, cut), (cut, window.end)):
            if begin < end:
                found, state = self._call(begin, end, begin - window.start, state)
                outputs.append(found)
            if end == cut and begin < end:
                following = _mapped(torch.Tensor.detach, state)
        whole = outputs[0] if len(outputs) == 1 else torch.cat(outputs, self._axis)
        block = whole.narrow(self._axis, window.block - window.start, window.end - window.block)
        return block, following, state

    def _call(self, begin: int, end: int, offset: int, state: Any) -> tuple[Tensor, Any]:
        assert self._leaf is not None
        x = self._leaf.narrow(self._axis, offset, end - begin)
        own: dict[str, Any] = (
            {} if self._lengths is None else {"lengths": (self._lengths - begin).clamp(0, end - begin)}
        )
        if isinstance(self._model, Cell):
            return unfold(self._model, x, state, **own)
        outputs, after = self._model(x, state, **own)
        return outputs, after

    def collect(self, window: _Window) -> None:
        """Add up the gradient of the inputs that the backward pass of a window has found."""
        if self._of_inputs is not None and self._leaf is not None and self._leaf.grad is not None:
            self._of_inputs.narrow(self._axis, window.start, window.end - window.start).add_(self._leaf.grad)

    def pass_on(self) -> None:
        """Send the gradient of the inputs to where they come from."""
        if self._of_inputs is not None:
            self._inputs.backward(self._of_inputs)  # type: ignore[no-untyped-call]


class _Leaves:
    """A state cut off from what it was made from, to which its gradient goes at the end."""

    def __init__(self, state: Any) -> None:
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self.leaves = _mapped(self._leaf, state)

    def _leaf(self, tensor: Tensor) -> Tensor:
        leaf = tensor.detach().requires_grad_(tensor.requires_grad)
        self._pairs.append((tensor, leaf))
        return leaf

    def pass_on(self) -> None:
        """Send the gradient to where the state comes from."""
        found = [(tensor, leaf.grad) for tensor, leaf in self._pairs if leaf.grad is not None]
        if found:
            torch.autograd.backward([tensor for tensor, _ in found], [gradient for _, gradient in found])


def _mapped(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """The state with every tensor replaced: a tensor, nested tuples of them, or None."""
    if state is None or isinstance(state, Tensor):
        return None if state is None else function(state)
    fields = [_mapped(function, field) for field in state]
    return type(state)(*fields) if hasattr(state, "_fields") else type(state)(fields)
