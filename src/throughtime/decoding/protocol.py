"""What a model must offer to be decoded: a state, and one step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from throughtime.errors import ShapeError


class Steppable(Protocol):
    """A model that reads one token of each row at a time: o(t), h(t) from y(t-1), h(t-1).

    The state is the model's own affair: decoding only hands it back, or, where a search goes on from some of its rows
    only, picks rows of it: see `Reordering`. A model with an attribute `border_id` (or a
    `config` that has one) names with it the token that opens and ends its sequences.
    """

    vocabulary_size: int

    def initial_state(self, batch_size: int) -> Any:
        """The state of `batch_size` rows before their first token."""
        ...

    def step(self, tokens: Int[Tensor, " B"], state: Any) -> tuple[Float[Tensor, "B V"], Any]:
        """Logits of the next token after one more token of each row, and the new state."""
        ...


@runtime_checkable
class Reading(Protocol):
    """A model that can also read many steps at once, which is quicker than step by step."""

    def read(self, tokens: Int[Tensor, "T B"], state: Any) -> tuple[Float[Tensor, "B V"], Any]:
        """Logits of the next token after all of `tokens`, and the new state."""
        ...


@runtime_checkable
class Reordering(Protocol):
    """A model that picks rows of its state itself.

    A state without this is any nest of tuples, lists and mappings; its tensors have the batch as first axis, and what
    is no tensor is the same for all rows.
    """

    def reorder(self, state: Any, indices: Int[Tensor, " N"]) -> Any:
        """The state of the rows `indices`: any number of them, some more than once, others not at all."""
        ...


def reordered(model: Any, state: Any, indices: Int[Tensor, " N"], *, rows: int) -> Any:
    """The rows `indices` of a state of `rows` rows, by the model's own `reorder` or by the first axis.

    Raises:
        ShapeError: the model has no `reorder`, and a tensor of its state has another first axis.
    """
    if isinstance(model, Reordering):
        return model.reorder(state, indices)
    if isinstance(state, Tensor):
        if state.dim() == 0 or len(state) != rows:
            raise ShapeError(
                f"decoding: tensors of the state of {type(model).__name__} must have the batch of {rows} as first "
                f"axis, got {tuple(state.shape)}; define reorder(state, indices) for other states"
            )
        return state[indices]
    if isinstance(state, Mapping):
        return {name: reordered(model, part, indices, rows=rows) for name, part in state.items()}
    if isinstance(state, tuple | list):
        parts = [reordered(model, part, indices, rows=rows) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    return state
