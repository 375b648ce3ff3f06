"""The reference engine: a cell through time in plain torch, step by step. It is the specification.

It runs every cell and every option, is differentiable any number of times, and works under `torch.func`. Being a
Python loop over time steps it is slow; the other engines exist for that.
"""

from __future__ import annotations

from dataclasses import replace
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
        steps = call.inputs.shape[0]
        if not steps:
            return _no_steps(call)
        inputs, state, running = call.inputs, call.state, None
        if call.lengths is not None:
            running = torch.arange(steps, device=inputs.device)[:, None] < call.lengths  # (T, B)
            # What stands in the padding must not matter, not even through 0 · nan in the backward pass.
            inputs = torch.where(running[..., None], inputs, 0)
        projected = call.cell.project_inputs(inputs)  # (T, B, G)
        outputs: list[Any] = [None] * steps
        states: list[Any] = [None] * steps
        gates: list[Any] = [None] * steps
        for t in reversed(range(steps)) if call.reverse else range(steps):
            if call.resets is not None:
                state = _where(~call.resets[t], state)
            shown, gate = call.cell.advance(projected[t], state, call.recurrent_mask)
            if call.zoneout is not None:
                shown = _zone_out(call.zoneout, t, state, shown)
            if running is None:
                state = shown
            else:
                state = _where(running[t], shown, state)
                shown, gate = _where(running[t], shown), _where(running[t], gate)
            outputs[t] = shown[0]  # (B, H)
            if call.record:
                states[t], gates[t] = shown, gate
        record = (_stack(states), _stack(gates)) if call.record else (None, None)
        return Unfolded(torch.stack(outputs), state, *record)


def _no_steps(call: Recurrence) -> Unfolded:
    """No time at all: the state as it came, and outputs (0, B, H) shaped by one step that is not kept."""
    one_step = call.inputs.new_zeros(1, *call.inputs.shape[1:])
    whole = replace(call, inputs=one_step, lengths=None, resets=None, zoneout=None)
    outputs, _, states, gates = ReferenceEngine().run(whole)
    record = [_like(kept, [field[:0] for field in kept]) for kept in (states, gates) if kept is not None]
    return Unfolded(outputs[:0], call.state, *record)


def _where(condition: Tensor, yes: Any, no: Any = None) -> Any:
    """For each field and each sequence: `yes` where the condition (B,) holds, else `no`, or zero."""

    def choose(a: Tensor, b: Tensor | int) -> Tensor:
        return torch.where(condition.reshape(-1, *[1] * (a.dim() - 1)), a, b)

    return _like(yes, [choose(a, b) for a, b in zip(yes, [0] * len(yes) if no is None else no, strict=True)])


def _zone_out(zoneout: Any, t: int, old: Any, new: Any) -> Any:
    """s(t) = z ⊙ s(t-1) + (1 - z) ⊙ s̃(t) for each field of the state (Krueger et al. 2017, eq. 2)."""
    fields = [b if z is None else z[t] * a + (1 - z[t]) * b for z, a, b in zip(zoneout, old, new, strict=True)]
    return _like(new, fields)


def _stack(values: list[Any]) -> Any:
    return _like(values[0], [torch.stack(field) for field in zip(*values, strict=True)])


def _like(example: Any, fields: list[Tensor]) -> Any:
    """`fields` as the same kind of (named) tuple as `example`."""
    return type(example)(*fields) if hasattr(example, "_fields") else tuple(fields)
