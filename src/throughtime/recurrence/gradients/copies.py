"""Copies of parameters, one for each step or sequence, each with a gradient of its own.

The trick of section 10.2.2 of Goodfellow, Bengio & Courville 2016: "dummy variables W(t) that are defined to be copies
of W but with each W(t) used only at time step t". Any cell can be run this way, step by step in plain torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.kernels import Recurrence, StepEquations, Unfolded
from throughtime.kernels.reference import ReferenceEngine


def copied_steps(
    call: Recurrence, record: Callable[[int, str, Tensor], None], record_state: Callable[[int, int, Tensor], None]
) -> Unfolded:
    """The call with a copy of every parameter for each step.

    In the backward pass `record(t, name, gradient)` is told the gradient of each copy, and `record_state(t, field,
    gradient)` that of each field of the state after step t, zero for the rows that have ended.
    """
    if 0 in call.inputs.shape[:2]:
        return ReferenceEngine().run(call)  # nothing to copy for
    steps = range(call.inputs.shape[0])
    state, outputs = call.state, [call.inputs] * len(steps)
    for t in reversed(steps) if call.reverse else steps:
        running = None if call.lengths is None else call.lengths > t  # (B,)
        cell = with_copies(call.cell, partial(record, t))
        after = ReferenceEngine().run(replace(_step(call, t, running), cell=cell, state=state)).final_state
        # A field that the step hands on as it was is another one of the same value now.
        after = type(after)(*(f.view_as(f) if any(f is old for old in state) else f for f in after))
        # The very tensors that the step made: what h(t) has of c(t) is part of the gradient of c(t).
        for index, field in enumerate(after):
            if field.requires_grad:
                field.register_hook(partial(record_state, t, index))
        state = after if running is None else _where(running, after, state)
        outputs[t] = state[0] if running is None else torch.where(running[:, None], state[0], 0)
    return Unfolded(torch.stack(outputs), state)


def copied_sequences(call: Recurrence, record: Callable[[int, str, Tensor], None]) -> Unfolded:
    """The call with a copy of every parameter for each sequence of the batch, each run by itself."""
    if 0 in call.inputs.shape[:2]:
        return ReferenceEngine().run(call)
    parts = []
    for b in range(call.inputs.shape[1]):
        cell = with_copies(call.cell, partial(record, b))
        parts.append(ReferenceEngine().run(replace(_row(call, b), cell=cell)))
    fields = (torch.cat(field) for field in zip(*(part.final_state for part in parts), strict=True))
    return Unfolded(torch.cat([part.outputs for part in parts], 1), type(call.state)(*fields))


def parameters_of(cell: Any) -> Mapping[str, Tensor]:
    """What a cell learns, by the names that it has there: a cell's own parameters, or the weights of equations."""
    if isinstance(cell, nn.Module):
        named = dict(cell.named_parameters())
    else:
        named = {name: weight for name, weight in cell.weights._asdict().items() if weight is not None}
    return {name: parameter for name, parameter in named.items() if parameter.requires_grad}


def with_copies(cell: Any, record: Callable[[str, Tensor], None]) -> StepEquations:
    """The cell with copies of its parameters; `record` is told the gradient of each."""
    copies = {name: _observed(found, partial(record, name)) for name, found in parameters_of(cell).items()}
    if isinstance(cell, nn.Module):
        return _CopiedCell(cell, copies)
    copied: StepEquations = replace(cell, weights=cell.weights._replace(**copies))
    return copied


def _step(call: Recurrence, t: int, running: Tensor | None) -> Recurrence:
    """Step t of the call by itself, of all rows; padding is zero, whatever stood there."""
    inputs = call.inputs[t : t + 1]  # (1, B, I)
    return replace(
        call,
        inputs=inputs if running is None else torch.where(running[:, None], inputs, 0),
        lengths=None,
        resets=None if call.resets is None else call.resets[t : t + 1],
        zoneout=None if call.zoneout is None else [None if z is None else z[t : t + 1] for z in call.zoneout],
    )


def _where(rows: Tensor, yes: Any, no: Any) -> Any:
    """For each field of a state: `yes` for the rows (B,) for which that is so, else `no`."""
    fields = zip(yes, no, strict=True)
    return type(yes)(*(torch.where(rows.reshape(-1, *[1] * (a.dim() - 1)), a, b) for a, b in fields))


def _row(call: Recurrence, b: int) -> Recurrence:
    """Sequence b of the call by itself."""
    row = slice(b, b + 1)
    return replace(
        call,
        inputs=call.inputs[:, row],
        state=type(call.state)(*(field[row] for field in call.state)),
        lengths=None if call.lengths is None else call.lengths[row],
        resets=None if call.resets is None else call.resets[:, row],
        recurrent_mask=None if call.recurrent_mask is None else call.recurrent_mask[row],
        zoneout=None if call.zoneout is None else [None if z is None else z[:, row] for z in call.zoneout],
    )


def _observed(tensor: Tensor, tell: Callable[[Tensor], None]) -> Tensor:
    """A copy of the tensor; in the backward pass `tell` gets its gradient, all of it at once."""
    observed: Tensor = _Observed.apply(tensor, tell)  # type: ignore[no-untyped-call]
    return observed


class _Observed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, tell: Callable[[Tensor], None]) -> Tensor:
        ctx.tell = tell
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.tell(gradient)
        return gradient, None


class _Methods(nn.Module):
    """A cell whose methods `torch.func.functional_call` reaches."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, method: str, *arguments: Any) -> Any:
        return getattr(self.cell, method)(*arguments)


class _CopiedCell:
    """A user's own cell with other tensors in the place of its parameters."""

    family = "custom"

    def __init__(self, cell: nn.Module, copies: Mapping[str, Tensor]) -> None:
        self._methods = _Methods(cell)
        self._copies = {f"cell.{name}": copy for name, copy in copies.items()}

    def project_inputs(self, inputs: Tensor) -> Tensor:
        """All that x contributes, by the copies."""
        return self._call("project_inputs", inputs)  # type: ignore[no-any-return]

    def advance(self, projected: Tensor, state: Any, recurrent_mask: Tensor | None) -> Any:
        """One step, by the copies."""
        return self._call("advance", projected, state, recurrent_mask)

    def _call(self, *arguments: Any) -> Any:
        return torch.func.functional_call(self._methods, self._copies, arguments)
