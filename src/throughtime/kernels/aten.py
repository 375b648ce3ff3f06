"""The torch engine: PyTorch's own fused recurrences (ATen, oneDNN, cuDNN), where they compute the same function.

oneDNN's LSTM and cuDNN's layers have no second derivative; `throughtime.kernels.twice` gives them one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import _VF, Tensor
from torch.autograd import forward_ad

from throughtime.kernels.pieces import run_in_pieces
from throughtime.kernels.recurrence import Recurrence, Unfolded
from throughtime.kernels.twice import differentiable_twice


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
        once_only = call.cell.family == "lstm" or call.inputs.is_cuda
        return differentiable_twice(call, _fused) if once_only else _fused(call)


def _fused(call: Recurrence) -> Unfolded:
    """What the fused kernel makes of whole or ragged sequences in either direction."""
    steps = call.inputs.shape[0]
    lengths = call.lengths
    if lengths is not None and bool((lengths == steps).all()):
        lengths = None
    if not call.reverse:
        outputs, *state = _forward_in_time(call, call.inputs, lengths)
    else:
        turn = _turn if lengths is None else _turn_ragged(lengths, steps)
        turned, *state = _forward_in_time(call, turn(call.inputs), lengths)
        outputs = turn(turned)
    return Unfolded(outputs, type(call.state)(*state))


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
