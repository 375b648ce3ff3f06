"""A `Recurrence` as the operator's arguments, and the operator's results as what was asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from throughtime.kernels.native.arguments import Arguments
from throughtime.kernels.recurrence import Recurrence, Unfolded

PRECISIONS = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}


def arguments_of(call: Recurrence) -> Arguments:
    """The operator's arguments.

    bfloat16 is a precision of products: sums, gates and states are float32, and so is all that is handed over.
    """
    cell: Any = call.cell
    weights = cell.weights
    dtype = weights.weight_hh.dtype
    precision = PRECISIONS[dtype]
    if torch.is_autocast_enabled("cpu") and dtype == torch.float32:
        precision = PRECISIONS.get(torch.get_autocast_dtype("cpu"), precision)
    computed = torch.float64 if dtype == torch.float64 else torch.float32

    def given(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(computed)

    zoneout = [*(call.zoneout or ()), None, None]
    return Arguments(
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


def unfolded_of(call: Recurrence, arguments: Arguments, results: tuple[Tensor, ...]) -> Unfolded:
    """What the operator found, in the dtype of the cell's weights; states and gates where they are wanted."""
    cell: Any = call.cell
    dtype = cell.weights.weight_hh.dtype
    outputs, h, c, saved, cells = results
    state_type: Any = type(call.state)
    if dtype != outputs.dtype:
        outputs, h, c = outputs.to(dtype), h.to(dtype), c.to(dtype)
    state = state_type(h, c) if arguments.c_first is not None else state_type(h)
    if not call.record:
        return Unfolded(outputs, state)
    states = state_type(outputs, cells.to(dtype)) if arguments.c_first is not None else state_type(outputs)
    values = saved.to(dtype).chunk(arguments.saved_values, 2)  # (T, B, H) each
    return Unfolded(outputs, state, states, cell.gates_type(*values[: len(cell.gates_type._fields)]))


def _native_name(cell: Any) -> str:
    """Which of the engine's cells has these equations."""
    if cell.family == "rnn":
        return f"rnn_{cell.nonlinearity}"
    if cell.family == "lstm":
        return "lstm" if cell.weights.weight_hr is None else "lstm_projected"
    return "gru" if cell.reset_after else "gru_before"
