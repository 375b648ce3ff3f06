"""What a model must offer to be decoded: a state, and one step."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor


class Steppable(Protocol):
    """A model that reads one token of each row at a time: o(t), h(t) from y(t-1), h(t-1).

    The state is the model's own affair: decoding only hands it back. A model with an attribute `border_id` (or a
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
