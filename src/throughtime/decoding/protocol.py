"""What a model must offer to be decoded: a state, and one step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
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


@runtime_checkable
class Attending(Protocol):
    """A model whose steps look at a source of S places."""

    def attention(self, state: Any) -> Float[Tensor, "B S"] | None:
        """The weights with which the step that led to `state` looked at the source; zeros on padding.

        That step's logits are of the next token, so these weights belong to it. None where it has looked nowhere.
        """
        ...


@runtime_checkable
class Masking(Protocol):
    """A model that tells which places of its source are real: what a coverage penalty must know."""

    def source_mask(self, state: Any) -> Bool[Tensor, "B S"] | None:
        """True where a row has a source, False on its padding; None of a model that looks nowhere."""
        ...


class Ranked(NamedTuple):
    """The likeliest next tokens of each row, the best first, equals by their ids.

    log_p: (B, k) float64, in nats; -inf where a row has fewer than k possible tokens. ids: (B, k) int64. of_end: (B,)
    float64, log p of the end, which is not among the k; None where nothing ends a sequence. state: the new one.
    """

    log_p: Tensor
    ids: Tensor
    of_end: Tensor | None
    state: Any


@runtime_checkable
class Ranking(Protocol):
    """A model that finds the likeliest next tokens itself, quicker than by all V log-probabilities."""

    def rank(self, tokens: Int[Tensor, " B"], state: Any, k: int, end: int | None) -> Ranked:
        """One step, and the `k` likeliest next tokens after it, `end` left out; k is at most their number.

        Their log-probabilities are of all V tokens, `end` among them, at most 0, and NaN where logits are no numbers.
        """
        ...


def reordered(model: Any, state: Any, indices: Int[Tensor, " N"], *, rows: int) -> Any:
    """The rows `indices` of a state of `rows` rows, by the model's own `reorder` or by the first axis.

    Raises:
        ShapeError: the model has no `reorder`, and a tensor of its state has another first axis.
    """
    if hasattr(model, "reorder"):  # `Reordering`; asked at every step, where isinstance would cost more than all else
        return model.reorder(state, indices)
    return _picked(model, state, indices, rows)


def _picked(model: Any, state: Any, indices: Int[Tensor, " N"], rows: int) -> Any:
    """The rows of every tensor in a nest."""
    if isinstance(state, Tensor):
        if state.dim() == 0 or len(state) != rows:
            raise ShapeError(
                f"decoding: tensors of the state of {type(model).__name__} must have the batch of {rows} as first "
                f"axis, got {tuple(state.shape)}; define reorder(state, indices) for other states"
            )
        return state[indices]
    if isinstance(state, Mapping):
        return {name: _picked(model, part, indices, rows) for name, part in state.items()}
    if isinstance(state, tuple | list):
        parts = [_picked(model, part, indices, rows) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    return state
