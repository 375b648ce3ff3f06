"""The native recurrence as one node of autograd's graph.

The operator has a derivative of its own, for compilers and exporters; a program that runs as it is written meets this
node instead: it leads to the same kernels with less on the way, and it can be differentiated twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from throughtime.kernels.native.arguments import TENSORS, Arguments
from throughtime.kernels.native.lookup import Table, worthwhile
from throughtime.kernels.native.operators import (
    DIFFERENTIABLE,
    Deltas,
    recurrence,
    recurrence_backward,
    recurrence_deltas,
    run_backward,
    run_forward,
)
from throughtime.kernels.native.translation import arguments_of, unfolded_of
from throughtime.kernels.recurrence import Lookup, Recurrence, Unfolded
from throughtime.kernels.twice import (
    autocast_now,
    differentiable_tensors,
    flat,
    grouped,
    rebuilder,
    reference_gradients,
)


class BackwardPass(NamedTuple):
    """A backward pass step by step: what it was called with, what the forward pass had kept, and what it found."""

    arguments: Arguments
    outputs: Tensor
    saved: Tensor
    cells: Tensor
    deltas: Deltas


Watch = Callable[[BackwardPass], None]


def run_differentiably(call: Recurrence, watch: Watch | None = None) -> Unfolded:
    """The call, with derivatives of every order.

    With `watch` the backward pass tells it what every step contributes, and sums nothing up itself: it leaves no
    gradients of weights.
    """
    # How the results are grouped is learnt in the forward pass: autograd passes flat tuples.
    groups: list[Unfolded] = []
    lookup = worthwhile(call) if watch is None else None
    rows, tokens = (None, None) if lookup is None else (lookup.weight, lookup.tokens)
    # By what the operator calls them; a cell does without some.
    named = {name: t for name, t in zip(_names(call), differentiable_tensors(call), strict=True) if t is not None}
    results = _Node.apply(call, tuple(named), groups, watch, rows, tokens, *named.values())  # type: ignore[no-untyped-call]
    return grouped(results, groups[0])


# The arguments of the node before the call's tensors.
_PLAIN = 6
# Of these, the one that has a gradient: the table that inputs are looked up in.
_ROWS = 4
# What is differentiated in a call that is watched: the rest are the weights.
_OF_CALL = ("inputs", "h_first", "c_first")


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        call: Recurrence,
        names: tuple[str, ...],
        groups: list[Unfolded],
        watch: Watch | None,
        rows: Tensor | None,
        tokens: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        arguments = arguments_of(call)
        ctx.table = None
        if rows is not None and tokens is not None:
            ctx.table = table = Table(arguments, Lookup(tokens, rows))
            arguments = table.arguments
            results = run_forward(arguments, True, table.places())
        else:
            results = recurrence(arguments, keep=True)
        unfolded = unfolded_of(call, arguments, results)
        groups.append(unfolded)
        ctx.rebuild, ctx.all_names = rebuilder(call), _names(call)
        ctx.names, ctx.record, ctx.watch = names, call.record, watch
        ctx.plain = arguments[:3]
        ctx.autocast = autocast_now("cpu")
        outputs, _, _, saved, cells = results
        # What the operator was given, where that is not what the call has: of another type, or what a table replaces.
        given = dict(zip(names, tensors, strict=True))
        own = {name: t for name, t in zip(TENSORS, arguments[3:], strict=True) if t is not given.get(name)}
        ctx.own = tuple(own)
        # What the table was made of, so that a change before the backward pass is noticed.
        ctx.save_for_backward(rows, tokens, outputs, saved, cells, *tensors, *own.values())
        ctx.set_materialize_grads(False)
        # Every state is handed out with the outputs, and gates are parts of one tensor; autograd wants tensors apart.
        return tuple(result.detach() for result in flat(unfolded)) if call.record else flat(unfolded)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        names = ctx.names
        _, _, outputs, saved, cells, *tensors = ctx.saved_tensors
        given = dict(zip(names, tensors, strict=False))
        if torch.is_grad_enabled():
            leaves = [given.get(name) for name in ctx.all_names]
            with ctx.autocast():
                found = dict(zip(ctx.all_names, reference_gradients(ctx.rebuild, leaves, gradients), strict=True))
            return (*(None,) * _PLAIN, *map(found.get, names))
        given |= zip(ctx.own, tensors[len(names) :], strict=True)
        arguments = Arguments(*ctx.plain, *map(given.get, TENSORS))
        needed = dict(zip(names, ctx.needs_input_grad[_PLAIN:], strict=True))
        wanted = [needed.get(name, False) for name in DIFFERENTIABLE]
        if ctx.table is not None:
            wanted[0] = ctx.needs_input_grad[_ROWS]
        of_results = _gradients_of_results(arguments, ctx.record, saved, gradients)
        if not any(wanted) or all(gradient is None for gradient in of_results):
            return (None,) * (_PLAIN + len(names))
        if ctx.table is not None:
            found = _through_table(ctx.table, arguments, (outputs, saved, cells), of_results, wanted)
            of_rows = found.pop("inputs", None)
            return (*(None,) * _ROWS, of_rows, None, *map(found.get, names))
        if ctx.watch is None:
            found = recurrence_backward(arguments, outputs, saved, cells, of_results, wanted)
        else:
            wanted = [want and name in _OF_CALL for name, want in zip(DIFFERENTIABLE, wanted, strict=True)]
            found, deltas = recurrence_deltas(arguments, outputs, saved, cells, of_results, wanted)
            ctx.watch(BackwardPass(arguments, outputs, saved, cells, deltas))
        return (*(None,) * _PLAIN, *map(found.get, names))


def _through_table(
    table: Table,
    arguments: Arguments,
    results: tuple[Tensor, Tensor, Tensor | None],
    of_results: tuple[Tensor | None, ...],
    wanted: list[bool],
) -> dict[str, Tensor]:
    """The gradients that are wanted, by name, "inputs" being those of the table's rows."""
    by_name = dict(zip(DIFFERENTIABLE, wanted, strict=True))
    of_call = [
        want and name not in ("inputs", "weight_ih") and getattr(arguments, name) is not None
        for name, want in by_name.items()
    ]
    of_table = table.gradient()
    found = run_backward(arguments, results, of_results, of_call, table.places() | {"d_table": of_table})
    return found | table.gradients(of_table, by_name)


def _names(call: Recurrence) -> list[str]:
    """What the operator calls each of `differentiable_tensors`."""
    cell: Any = call.cell
    return ["inputs", *("h_first", "c_first")[: len(call.state)], *cell.weights._fields]


def _gradients_of_results(
    arguments: Arguments, record: bool, saved: Tensor, gradients: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients of the operator's results (outputs, h, c, saved, cells), from those of what was made of them."""
    rest = iter(gradients)

    def given() -> Tensor | None:
        gradient = next(rest)
        return None if gradient is None else gradient.to(saved.dtype)

    lstm = arguments.c_first is not None
    d_outputs, d_h, d_c = given(), given(), given() if lstm else None
    if not record:
        return d_outputs, d_h, d_c, None, None
    d_states, d_cells = given(), given() if lstm else None
    d_gates = [None if gradient is None else gradient.to(saved.dtype) for gradient in rest]
    if d_states is not None:
        d_outputs = d_states if d_outputs is None else d_outputs + d_states
    d_saved = None
    if any(gradient is not None for gradient in d_gates):
        d_saved = torch.zeros_like(saved)
        for part, gradient in zip(d_saved.chunk(arguments.saved_values, 2), d_gates, strict=False):
            if gradient is not None:
                part.copy_(gradient)
    return d_outputs, d_h, d_c, d_saved, d_cells
