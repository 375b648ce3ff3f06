"""The reference engine: a cell through time in plain torch, step by step. It is the specification.

It runs every cell and every option, is differentiable any number of times, and works under `torch.func`. Being a
Python loop over time steps it is slow; the other engines exist for that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from throughtime.kernels.recurrence import Recurrence, Unfolded


class ReferenceEngine:
    """Unfolds any cell: h(t) = f(h(t-1), x(t)), the graph of eq. 10.4 written out (Goodfellow et al. 2016)."""

    name = "reference"

    def refusal(self, call: Recurrence) -> str | None:
        """Nothing is refused: this engine defines what is right."""
        return None

    def run(self, call: Recurrence) -> Unfolded:
        """Step through time, one `cell.advance` for each step."""
        inputs, state = call.inputs, call.state
        steps = inputs.shape[0]
        if call.lengths is not None:
            # What stands in the padding must not matter, not even through 0 · nan in the backward pass.
            inputs = torch.where(_running(call, slice(None))[..., None], inputs, 0)
        projected = call.cell.project_inputs(inputs)  # (T, B, G)
        outputs: list[Any] = [None] * steps
        states: list[Any] = [None] * steps
        gates: list[Any] = [None] * steps
        for t in reversed(range(steps)) if call.reverse else range(steps):
            if call.resets is not None:
                state = _choose(~call.resets[t], state, [torch.zeros_like(field) for field in state])
            new, gates[t] = call.cell.advance(projected[t], state, call.recurrent_mask)
            if call.zoneout is not None:
                new = _zone_out(call.zoneout, t, state, new)
            states[t] = new
            if call.lengths is not None:
                running = _running(call, t)
                states[t] = _choose(running, new, [torch.zeros_like(field) for field in new])
                gates[t] = _choose(running, gates[t], [torch.zeros_like(gate) for gate in gates[t]])
                new = _choose(running, new, state)
            outputs[t], state = states[t][0], new  # (B, H)
        if not steps:
            return Unfolded(inputs.new_zeros(0, *state[0].shape), state)
        record = (_stack(states), _stack(gates)) if call.record else (None, None)
        return Unfolded(torch.stack(outputs), state, *record)


def _running(call: Recurrence, t: int | slice) -> Tensor:
    """Whether each sequence has a step t: (B,), or (T, B) for all steps."""
    assert call.lengths is not None
    times = torch.arange(call.inputs.shape[0], device=call.inputs.device)[t]
    return times[..., None] < call.lengths if isinstance(t, slice) else times < call.lengths


def _choose(condition: Tensor, yes: Any, no: Any) -> Any:
    """For each field and each sequence: `yes` where the condition (B,) holds, else `no`."""

    def choose(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(condition.reshape(-1, *[1] * (a.dim() - 1)), a, b)

    return _like(yes, [choose(a, b) for a, b in zip(yes, no, strict=True)])


def _zone_out(zoneout: Any, t: int, old: Any, new: Any) -> Any:
    """s(t) = z ⊙ s(t-1) + (1 - z) ⊙ s̃(t) for each field of the state (Krueger et al. 2017, eq. 2)."""
    fields = [b if z is None else z[t] * a + (1 - z[t]) * b for z, a, b in zip(zoneout, old, new, strict=True)]
    return _like(new, fields)


def _stack(values: list[Any]) -> Any:
    return _like(values[0], [torch.stack(field) for field in zip(*values, strict=True)])


def _like(example: Any, fields: list[Tensor]) -> Any:
    """`fields` as the same kind of (named) tuple as `example`."""
    return type(example)(*fields) if hasattr(example, "_fields") else tuple(fields)
