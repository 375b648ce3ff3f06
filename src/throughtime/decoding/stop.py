"""When a sequence is complete."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from throughtime.errors import ConfigError


@dataclass(frozen=True)
class EndSymbol:
    """A sequence ends with one token of its vocabulary, by default the model's own border token.

    Source: Goodfellow, Bengio & Courville 2016, section 10.2.3: "a special symbol corresponding to the end".
    """

    id: int | None = None

    def id_for(self, model: Any) -> int:
        """The token that ends the sequences of `model`.

        Raises:
            ConfigError: no id was given and the model names none, or it is outside the model's vocabulary.
        """
        index = border_of(model) if self.id is None else self.id
        name = type(model).__name__
        if index is None:
            raise ConfigError(f"EndSymbol: {name} has no border_id; give the token that ends a sequence: EndSymbol(id)")
        if not 0 <= index < model.vocabulary_size:
            raise ConfigError(
                f"EndSymbol: id must be in 0..{model.vocabulary_size - 1}, the vocabulary of {name}, got {index}"
            )
        return index


def border_of(model: Any) -> int | None:
    """The token that opens and ends the sequences of `model`, where it names one."""
    border = getattr(model, "border_id", getattr(getattr(model, "config", None), "border_id", None))
    return None if border is None else int(border)
