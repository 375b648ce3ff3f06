"""A cell through time: `unfold`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from throughtime import kernels
from throughtime.cells import Cell
from throughtime.errors import UsageError
from throughtime.recurrence.checkpointing import engine_run
from throughtime.recurrence.placement import MemoryBudget
from throughtime.recurrence.walk import recurrence_of


def unfold(
    cell: Cell,
    inputs: Float[Tensor, "T B I"],
    state: Any = None,
    *,
    lengths: Int[Tensor, " B"] | Sequence[int] | None = None,
    resets: Bool[Tensor, "T B"] | None = None,
    reverse: bool = False,
    engine: str = "auto",
    checkpoint: str | int | MemoryBudget | None = None,
) -> tuple[Float[Tensor, "T B H"], Any]:
    """Run a cell over τ time steps, sharing its parameters across all of them (fig. 10.2).

    Args:
        cell: any `tt.Cell`.
        inputs: x(1..τ), time first.
        state: the state before the first step, as the cell's `State` or a tuple of its fields; zeros when missing.
            The final state of one call, handed to the next, carries a sequence on.
        lengths: how many steps each sequence has, in any order, zero allowed. What stands behind a length changes
            nothing; the outputs there are zero.
        resets: true at [t, b] where row b begins a new sequence at step t: the state before it is zero.
        reverse: run from each sequence's last step to its first.
        engine: "auto", or the name of one engine (`tt.kernels.explain` tells which would run).
        checkpoint: keep states at borders of segments only, and compute the rest again in the backward pass, for less
            memory and the same gradients. "sqrt" takes about √τ segments, a number so many (one a step at most), and
            `tt.bptt.MemoryBudget(bytes)` the placement with the least recomputation that fits. Derivatives of a
            higher order take the memory of full BPTT. Where no gradient is wanted it changes nothing.

    Returns:
        The outputs h(1..τ), and the state at each sequence's own last step (the first, with `reverse`).

    Raises:
        ShapeError: inputs, state or lengths that do not fit.
        EngineError: the engine asked for by name cannot run this cell.
        UsageError: `cell` is no cell; `checkpoint` is none of these, its budget cannot hold one step, or the cell's
            step uses a tensor that requires a gradient and is none of its parameters.

    Source: Goodfellow, Bengio & Courville 2016, section 10.1, eqs. 10.4-10.7; Gruslys et al. 2016 for budgets.
    """
    who = type(cell).__name__
    if not isinstance(cell, Cell):
        remedy = "call it by itself" if hasattr(cell, "walk") else "write its step as a tt.Cell, or take one of tt.nn"
        raise UsageError(f"unfold: expected a tt.Cell, got {who}; {remedy}")
    call = recurrence_of(cell, inputs, state, lengths=lengths, resets=resets, reverse=reverse)
    unfolded = engine_run(kernels.check_engine_name(engine, who=who), checkpoint, who=who)(call)
    return unfolded.outputs, unfolded.final_state
