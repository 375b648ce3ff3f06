"""The native engine: cells through time in C++, for the processor at hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from throughtime.kernels.native import library
from throughtime.kernels.native.arguments import Arguments
from throughtime.kernels.native.custom import engine as custom
from throughtime.kernels.native.operators import recurrence
from throughtime.kernels.recurrence import Recurrence, Unfolded
from throughtime.kernels.twice import differentiable_tensors, differentiable_twice

_PRECISIONS = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}


class NativeEngine:
    """RNN, LSTM and GRU, and cells of one's own that it can trace, on x86-64 and arm64 processors."""

    name = "native"

    def refusal(self, call: Recurrence) -> str | None:
        """Why the native code does not compute this call; None where it does."""
        if call.inputs.device.type != "cpu":
            return f"the native engine is for processors, the inputs are on {call.inputs.device}"
        if (reason := _missing_reason()) is not None:
            return reason
        reason = _transformed()
        if call.cell.family == "custom":
            return reason or custom.refusal(call)
        return _beyond(call) or reason

    def run(self, call: Recurrence) -> Unfolded:
        """Run the native operator."""
        if call.cell.family == "custom":
            return custom.run(call)
        return _run(call) if torch.compiler.is_compiling() else differentiable_twice(call, _run)


def _missing_reason() -> str | None:
    return library.missing_reason()


# For torch.compile it is a fact of the installation, nothing to trace. torch.compiler.assume_constant_result does the
# same, but imports the whole compiler.
_missing_reason._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _beyond(call: Recurrence) -> str | None:
    """What the call has and the native code has not."""
    cell: Any = call.cell
    if cell.weights.gain_ih is not None:
        return "the native engine has no layer normalisation inside the cell"
    if call.inputs.dtype not in _PRECISIONS or cell.weights.weight_hh.dtype not in _PRECISIONS:
        return f"the native engine computes in float32, float64 and bfloat16, not in {call.inputs.dtype}"
    masks = [call.recurrent_mask, *(call.zoneout or ())]
    if any(mask is not None and mask.requires_grad for mask in masks):
        return "the native engine has no gradient of masks"
    return None


def _transformed() -> str | None:
    """Transformations of functions that cannot see into an operator."""
    if torch.compiler.is_compiling():
        return None
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "the native engine does not work under torch.func transforms"
    if forward_ad._current_level >= 0:
        return "the native engine has no forward-mode derivative"
    return None


def _run(call: Recurrence) -> Unfolded:
    arguments, dtype = _arguments(call)
    keep = call.record or (
        torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in differentiable_tensors(call))
    )
    outputs, h, c, saved, cells = recurrence(arguments, keep)
    state_type: Any = type(call.state)
    if dtype != outputs.dtype:
        outputs, h, c = outputs.to(dtype), h.to(dtype), c.to(dtype)
    state = state_type(h, c) if arguments.c_first is not None else state_type(h)
    if not call.record:
        return Unfolded(outputs, state)
    states = state_type(outputs, cells.to(dtype)) if arguments.c_first is not None else state_type(outputs)
    values = saved.to(dtype).chunk(arguments.saved_values, 2)  # (T, B, H) each
    cell: Any = call.cell
    return Unfolded(outputs, state, states, cell.gates_type(*values[: len(cell.gates_type._fields)]))


def _arguments(call: Recurrence) -> tuple[Arguments, torch.dtype]:
    """The operator's arguments, and the dtype that results are wanted in.

    bfloat16 is a precision of products: sums, gates and states are float32, and so is all that is handed over.
    """
    cell: Any = call.cell
    weights = cell.weights
    dtype = weights.weight_hh.dtype
    precision = _PRECISIONS[dtype]
    if torch.is_autocast_enabled("cpu") and dtype == torch.float32:
        precision = _PRECISIONS.get(torch.get_autocast_dtype("cpu"), precision)
    computed = torch.float64 if dtype == torch.float64 else torch.float32

    def given(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(computed)

    zoneout = [*(call.zoneout or ()), None, None]
    arguments = Arguments(
        _native_name(cell),
        precision,
        call.reverse,
        call.inputs.to(computed),
        weights.weight_ih.to(computed),
        weights.weight_hh.to(computed),
        given(getattr(weights, "weight_hr", None)),
        given(weights.bias_ih),
        given(weights.bias_hh),
        given(getattr(weights, "weight_peephole", None)),
        call.state[0].to(computed),
        call.state[1].to(computed) if len(call.state) > 1 else None,
        call.lengths,
        call.resets,
        given(call.recurrent_mask),
        given(zoneout[0]),
        given(zoneout[1]) if len(call.state) > 1 else None,
    )
    return arguments, dtype


def _native_name(cell: Any) -> str:
    """Which of the engine's cells has these equations."""
    if cell.family == "rnn":
        return f"rnn_{cell.nonlinearity}"
    if cell.family == "lstm":
        return "lstm" if cell.weights.weight_hr is None else "lstm_projected"
    return "gru" if cell.reset_after else "gru_before"
