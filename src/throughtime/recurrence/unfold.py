"""A cell through time: `unfold`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from throughtime import kernels
from throughtime.cells import Cell
from throughtime.recurrence.lengths import checked_lengths, checked_resets


def unfold(
    cell: Cell,
    inputs: Float[Tensor, "T B I"],
    state: Any = None,
    *,
    lengths: Int[Tensor, " B"] | Sequence[int] | None = None,
    resets: Bool[Tensor, "T B"] | None = None,
    reverse: bool = False,
    engine: str = "auto",
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

    Returns:
        The outputs h(1..τ), and the state at each sequence's own last step (the first, with `reverse`).

    Raises:
        ShapeError: inputs, state or lengths that do not fit.
        EngineError: the engine asked for by name cannot run this cell.

    Source: Goodfellow, Bengio & Courville 2016, section 10.1, eqs. 10.4-10.7.
    """
    who = type(cell).__name__
    call = cell.recurrence(inputs, state)
    lengths = checked_lengths(lengths, inputs, who=who)
    resets = checked_resets(resets, inputs, who=who, lengths=lengths)
    call = replace(call, lengths=lengths, resets=resets, reverse=reverse)
    unfolded = kernels.run(call, kernels.check_engine_name(engine, who=who))
    return unfolded.outputs, unfolded.final_state
