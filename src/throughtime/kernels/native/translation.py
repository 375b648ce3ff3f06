"""A `Recurrence` as the operator's arguments, and the operator's results as what was asked for."""

from __future__ import annotations

from typing import Any

import torch

from throughtime.kernels.native.arguments import Arguments
from throughtime.kernels.native.operators import Results
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
    zoneout = (*(call.zoneout or ()), None, None)
    return Arguments(
        _native_name(cell),
        precision,
        call.reverse,
        _in(computed, call.inputs),
        _in(computed, weights.weight_ih),
        _in(computed, weights.weight_hh),
        _in(computed, getattr(weights, "weight_hr", None)),
        _in(computed, weights.bias_ih),
        _in(computed, weights.bias_hh),
        _in(computed, getattr(weights, "weight_peephole", None)),
        _in(computed, call.state[0]),
        _in(computed, call.state[1]) if len(call.state) > 1 else None,
        call.lengths,
        call.resets,
        _in(computed, call.recurrent_mask),
        _in(computed, zoneout[0]),
        _in(computed, zoneout[1]) if len(call.state) > 1 else None,
    )


def unfolded_of(call: Recurrence, arguments: Arguments, results: Results) -> Unfolded:
    """What the operator found, in the dtype of the cell's weights; states and gates where they are wanted."""
    cell: Any = call.cell
    dtype = cell.weights.weight_hh.dtype
    outputs, h, c, saved, cells = results
    state_type: Any = type(call.state)
    lstm = arguments.c_first is not None
    outputs = _in(dtype, outputs)
    state = state_type(_in(dtype, h), _in(dtype, c)) if lstm else state_type(_in(dtype, h))
    if not call.record:
        return Unfolded(outputs, state)
    states = state_type(outputs, _in(dtype, cells)) if lstm else state_type(outputs)
    values = _in(dtype, saved).chunk(arguments.saved_values, 2)  # (T, B, H) each
    return Unfolded(outputs, state, states, cell.gates_type(*values[: len(cell.gates_type._fields)]))


def _in(dtype: torch.dtype, tensor: Any) -> Any:
    """The tensor, if there is one, in that type; PyTorch takes longer to find that there is nothing to do."""
    return tensor if tensor is None or tensor.dtype == dtype else tensor.to(dtype)


def _native_name(cell: Any) -> str:
    """Which of the engine's cells has these equations."""
    if cell.family == "rnn":
        return f"rnn_{cell.nonlinearity}"
    if cell.family == "lstm":
        return "lstm" if cell.weights.weight_hr is None else "lstm_projected"
    return "gru" if cell.reset_after else "gru_before"
