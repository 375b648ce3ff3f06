"""The built-in cells by the names that configurations use."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from throughtime.cells.cell import Cell
from throughtime.cells.deep_transition import DeepTransitionCell
from throughtime.cells.gru import GRUCell
from throughtime.cells.leaky import LeakyCell, spread_alphas
from throughtime.cells.lstm import LSTMCell
from throughtime.cells.rnn import RNNCell
from throughtime.cells.skip import SkipCell
from throughtime.errors import UsageError


def _leaky(input_size: int, hidden_size: int) -> LeakyCell:
    """Time constants from 1 to 100 steps side by side, learned from there."""
    return LeakyCell(input_size, hidden_size, spread_alphas(hidden_size), learned=True)


def _deep_transition(input_size: int, hidden_size: int) -> DeepTransitionCell:
    """Two layers, with the connection that keeps the path from state to state short."""
    return DeepTransitionCell(input_size, hidden_size, skip=True)


CELL_KINDS: Mapping[str, Callable[[int, int], Cell]] = {
    "rnn": RNNCell,
    "lstm": LSTMCell,
    "gru": GRUCell,
    "leaky": _leaky,
    "skip": SkipCell,
    "deep_transition": _deep_transition,
}


def cell_kind(name: str) -> Callable[[int, int], Cell]:
    """What makes a cell of that name of (input_size, hidden_size), its other options as usual.

        >>> from throughtime.cells import cell_kind
        >>> cell_kind("skip")(3, 5)
        SkipCell(3, 5, delay=4)

    Raises:
        UsageError: there is none of that name.
    """
    if name not in CELL_KINDS:
        raise UsageError(f"cell_kind: cell must be one of {', '.join(CELL_KINDS)}, got {name!r}")
    return CELL_KINDS[name]
