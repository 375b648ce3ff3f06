"""The native engine: cells through time in C++, for the processor at hand."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad

from throughtime.kernels.native import library
from throughtime.kernels.native.autograd import run_differentiably
from throughtime.kernels.native.custom import engine as custom
from throughtime.kernels.native.lookup import Table, worthwhile
from throughtime.kernels.native.operators import recurrence, run_forward
from throughtime.kernels.native.translation import PRECISIONS, arguments_of, unfolded_of
from throughtime.kernels.recurrence import Recurrence, Unfolded
from throughtime.kernels.twice import differentiable_tensors


class NativeEngine:
    """RNN, LSTM and GRU, and cells of one's own that it can trace, on x86-64 and arm64 processors."""

    name = "native"

    def refusal(self, call: Recurrence) -> str | None:
        """Why the native code does not compute this call; None where it does."""
        if not call.inputs.is_cpu:
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
        keep = call.record or (
            torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in differentiable_tensors(call))
        )
        if keep and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return run_differentiably(call)
        arguments = arguments_of(call)
        if (lookup := worthwhile(call)) is not None:
            table = Table(arguments, lookup)
            return unfolded_of(call, table.arguments, run_forward(table.arguments, keep, table.places()))
        return unfolded_of(call, arguments, recurrence(arguments, keep))


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
    if call.inputs.dtype not in PRECISIONS or cell.weights.weight_hh.dtype not in PRECISIONS:
        return f"the native engine computes in float32, float64 and bfloat16, not in {call.inputs.dtype}"
    for mask in (call.recurrent_mask, *(call.zoneout or ())):
        if mask is not None and mask.requires_grad:
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
