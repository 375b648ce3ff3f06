"""The torch engine: PyTorch's own fused recurrences (ATen, oneDNN, cuDNN), where they compute the same function.

oneDNN's LSTM and cuDNN's layers have no second derivative. Here a backward pass that is itself to be differentiated
(`create_graph=True`) is computed on the reference path instead, so that it works for every layer in every mode.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import _VF, Tensor
from torch.autograd import forward_ad

from throughtime.kernels.pieces import run_in_pieces
from throughtime.kernels.recurrence import Recurrence, Unfolded
from throughtime.kernels.reference import ReferenceEngine


class TorchEngine:
    """`torch.nn`'s fused kernels for one layer in one direction."""

    name = "torch"

    def refusal(self, call: Recurrence) -> str | None:
        """Why PyTorch's kernels do not compute this call's function; None where they do."""
        cell: Any = call.cell
        if cell.family == "custom":
            return "PyTorch has no fused kernel for a cell of one's own"
        if (reason := cell.beyond_torch()) is not None:
            return f"PyTorch's fused kernels have no {reason}"
        if call.recurrent_mask is not None:
            return "PyTorch's fused kernels have no recurrent dropout"
        if call.zoneout is not None:
            return "PyTorch's fused kernels have no zoneout"
        if call.record:
            return "PyTorch's fused kernels do not hand out every state and gate"
        if not call.inputs.shape[0] or not call.inputs.shape[1]:
            return "PyTorch's fused kernels need at least one time step and one sequence"
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return "PyTorch's fused kernels do not work under torch.func transforms"
        if forward_ad._current_level >= 0:
            return "PyTorch's fused kernels have no forward-mode derivative"
        return None

    def run(self, call: Recurrence) -> Unfolded:
        """Run the fused kernel; ragged batches as `PackedSequence` does, resets in pieces."""
        if call.resets is not None:
            return run_in_pieces(call, self.run)
        tensors = _tensors(call)
        once_only = call.cell.family == "lstm" or call.inputs.is_cuda
        if once_only and torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
            results = _TwiceDifferentiable.apply(call, *tensors)  # type: ignore[no-untyped-call]
        else:
            results = _fused(call)
        return Unfolded(results[0], type(call.state)(*results[1:]))


class _TwiceDifferentiable(torch.autograd.Function):
    """A fused kernel whose backward pass, where it is to be differentiated itself, is the reference path's."""

    @staticmethod
    def forward(ctx: Any, call: Recurrence, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*tensors)
        # Tensors are autograd's to keep, to free and to guard against changes in place: here are only their shapes.
        ctx.call = _with_tensors(call, [None if t is None else torch.empty_like(t, device="meta") for t in tensors])
        ctx.autocast = _autocast_now(call.inputs.device.type)
        ctx.leaves, ctx.results = _differentiable(call, tensors, _fused)
        ctx.set_materialize_grads(False)
        return tuple(result.detach() for result in ctx.results)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        twice = torch.is_grad_enabled()
        tensors = ctx.saved_tensors
        if twice:
            # Aliases end the search for gradients here: where one of these tensors was made from another (the state
            # from the same weights, in an earlier call), that path is autograd's to follow, and to count once.
            leaves = [t if t is None or not t.requires_grad else t.view_as(t) for t in tensors]
            with ctx.autocast():
                results = _reference(_with_tensors(ctx.call, leaves))
        else:
            if ctx.results is None:  # a second plain backward over a kept graph
                with ctx.autocast():
                    ctx.leaves, ctx.results = _differentiable(ctx.call, tensors, _fused)
            leaves, results = ctx.leaves, ctx.results
            # The kernel's workspace goes as soon as autograd's own buffers would.
            ctx.leaves = ctx.results = None
        wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
        pairs = [(r, g) for r, g in zip(results, gradients, strict=True) if g is not None and r.requires_grad]
        if not pairs:
            return (None, *[None for _ in leaves])
        found = iter(
            torch.autograd.grad(
                [result for result, _ in pairs],
                wanted,
                [gradient for _, gradient in pairs],
                create_graph=twice,
                allow_unused=True,
            )
        )
        return (None, *[next(found) if leaf is not None and leaf.requires_grad else None for leaf in leaves])


def _differentiable(
    call: Recurrence, tensors: tuple[Tensor | None, ...], run: Callable[[Recurrence], tuple[Tensor, ...]]
) -> tuple[list[Tensor | None], tuple[Tensor, ...]]:
    """Run on detached leaves, with a graph of its own from the leaves to the results."""
    leaves = [None if t is None else t.detach().requires_grad_(t.requires_grad) for t in tensors]
    with torch.enable_grad():
        return leaves, run(_with_tensors(call, leaves))


def _autocast_now(device_type: str) -> Callable[[], torch.autocast]:
    """The autocast in force, to be entered again in the backward pass, which runs outside of it."""
    enabled, dtype = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    return lambda: torch.autocast(device_type, dtype=dtype, enabled=enabled)


def _tensors(call: Recurrence) -> list[Tensor | None]:
    """Everything that may need a gradient: inputs, state fields, weights."""
    cell: Any = call.cell
    return [call.inputs, *call.state, *cell.weights]


def _with_tensors(call: Recurrence, tensors: Any) -> Recurrence:
    """The same call on other tensors, in the order of `_tensors`."""
    cell: Any = call.cell
    inputs, *rest = tensors
    fields = len(call.state)
    weights = type(cell.weights)(*rest[fields:])
    return replace(call, inputs=inputs, state=type(call.state)(*rest[:fields]), cell=replace(cell, weights=weights))


def _reference(call: Recurrence) -> tuple[Tensor, ...]:
    unfolded = ReferenceEngine().run(call)
    return (unfolded.outputs, *unfolded.final_state)


def _fused(call: Recurrence) -> tuple[Tensor, ...]:
    """Outputs and final state fields from the fused kernel, for whole or ragged sequences in either direction."""
    steps = call.inputs.shape[0]
    lengths = call.lengths
    if lengths is not None and bool((lengths == steps).all()):
        lengths = None
    if not call.reverse:
        return _forward_in_time(call, call.inputs, lengths)
    turn = _turn if lengths is None else _turn_ragged(lengths, steps)
    outputs, *state = _forward_in_time(call, turn(call.inputs), lengths)
    return (turn(outputs), *state)


def _turn(sequence: Tensor) -> Tensor:
    return sequence.flip(0)


def _turn_ragged(lengths: Tensor, steps: int) -> Callable[[Tensor], Tensor]:
    """Reverse each sequence within its own length; padding stays where it is."""
    times = torch.arange(steps, device=lengths.device)[:, None]  # (T, 1)
    source = torch.where(times < lengths, lengths - 1 - times, times)  # (T, B)

    def turn(sequence: Tensor) -> Tensor:
        return sequence.gather(0, source[..., None].expand_as(sequence))

    return turn


def _forward_in_time(call: Recurrence, inputs: Tensor, lengths: Tensor | None) -> tuple[Tensor, ...]:
    cell: Any = call.cell
    weights = [weight for weight in cell.weights if weight is not None]
    state = [field[None].contiguous() for field in call.state]  # (1, B, ·), as torch's kernels want it
    hidden: Any = state if len(state) > 1 else state[0]
    kernel = getattr(_VF, cell.torch_kernel)
    # cuDNN keeps what its backward pass needs in training mode only; there is no dropout here to tell them apart.
    train = torch.is_grad_enabled()
    options = (weights, cell.weights.bias_ih is not None, 1, 0.0, train, False)
    projects = getattr(cell.weights, "weight_hr", None) is not None
    with _without_advice() if inputs.is_cuda or projects else nullcontext():
        if lengths is None:
            outputs, *final = kernel(inputs, hidden, *options, False)
            return (outputs, *[field[0] for field in final])
        return _packed(kernel, inputs, state, options, lengths)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Without two warnings about which a caller can do nothing.

    cuDNN would like the weights in one chunk; they are made into one for the call, which costs a copy. oneDNN leaves
    projections to ATen.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
        warnings.filterwarnings("ignore", message="LSTM with projections is not supported with oneDNN")
        yield


def _packed(kernel: Any, inputs: Tensor, state: list[Tensor], options: Any, lengths: Tensor) -> tuple[Tensor, ...]:
    """A ragged batch, sorted by length and packed without its padding."""
    empty = lengths == 0
    order = lengths.argsort(descending=True, stable=True)
    back = order.argsort()
    if bool(empty.any()):
        # A packed sequence has at least one step: empty ones take a step of zeros, which is replaced below.
        inputs = inputs.masked_fill(empty[:, None], 0)
    sorted_lengths = lengths.clamp(min=1)[order].cpu()
    data, batch_sizes = _VF._pack_padded_sequence(inputs.index_select(1, order), sorted_lengths, False)
    hidden = [field.index_select(1, order) for field in state]
    packed, *final = kernel(data, batch_sizes, hidden if len(hidden) > 1 else hidden[0], *options)
    outputs, _ = _VF._pad_packed_sequence(packed, batch_sizes, False, 0.0, inputs.shape[0])
    outputs = outputs.index_select(1, back).masked_fill(empty[:, None], 0)
    return (
        outputs,
        *[
            torch.where(empty[:, None], old[0].to(new.dtype), new[0].index_select(0, back))
            for old, new in zip(state, final, strict=True)
        ],
    )
