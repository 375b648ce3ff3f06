"""When a sequence is complete: three rules, of which a model was built for one.

All three end a sequence with an action of the model's, one more than its symbols: see `throughtime.decoding.given`.

Source: Goodfellow, Bengio & Courville 2016, end of section 10.2.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

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
            ConfigError: no id was given and the model names none, it is outside the model's vocabulary, or the model
                ends its sequences in another way.
        """
        index = border_of(model) if self.id is None else self.id
        name = type(model).__name__
        if hasattr(model, "stop_kind"):
            own = _end_of_kind(model, self, "end_symbol")
            if index != own:
                raise ConfigError(f"EndSymbol: id must be {own}, the end that the model was built with, got {index}; "
                                  "leave it out")  # fmt: skip
        if index is None:
            raise ConfigError(f"EndSymbol: {name} has no border_id; give the token that ends a sequence: EndSymbol(id)")
        if not 0 <= index < model.vocabulary_size:
            raise ConfigError(
                f"EndSymbol: id must be in 0..{model.vocabulary_size - 1}, the vocabulary of {name}, got {index}"
            )
        return index


@dataclass(frozen=True)
class BernoulliHalt:
    """Before each symbol the network halts or goes on: an extra output s(t) is the probability to halt.

    Source: Goodfellow, Bengio & Courville 2016, section 10.2.3: "an extra Bernoulli output".
    """

    def id_for(self, model: Any) -> int:
        """The action that ends the sequences of `model`.

        Raises:
            ConfigError: the model ends its sequences in another way.
        """
        return _end_of_kind(model, self, "bernoulli_halt")


@dataclass(frozen=True)
class PredictedLength:
    """The length is drawn first, and what remains of it is an input of each step.

    Source: Goodfellow, Bengio & Courville 2016, section 10.2.3: "an extra output that predicts the integer τ itself".
    """

    def id_for(self, model: Any) -> int:
        """The action that ends the sequences of `model`.

        Raises:
            ConfigError: the model ends its sequences in another way.
        """
        return _end_of_kind(model, self, "predicted_length")


StopRule: TypeAlias = EndSymbol | BernoulliHalt | PredictedLength


def end_of(model: Any, stop: StopRule | None) -> int | None:
    """The action that ends the sequences of `model`; None where nothing does.

    Without a rule it is the model's own one, where it has one.

    Raises:
        ConfigError: `stop` is not the rule that the model was built for.
    """
    if stop is not None and not isinstance(stop, StopRule):
        raise ConfigError(f"decoding: stop must be {', '.join(_RULES.values())} or None, got {stop!r}")
    if stop is not None:
        return stop.id_for(model)
    return border_of(model) if hasattr(model, "stop_kind") else None


def border_of(model: Any) -> int | None:
    """The token that opens and ends the sequences of `model`, where it names one."""
    border = getattr(model, "border_id", getattr(getattr(model, "config", None), "border_id", None))
    return None if border is None else int(border)


def _end_of_kind(model: Any, rule: StopRule, kind: str) -> int:
    who, built = type(rule).__name__, getattr(model, "stop_kind", None)
    if built is None:
        raise ConfigError(
            f'{who}: the model must be ContextToSequence(stop="{kind}"), given its context by tt.decoding.given, got '
            f"{type(model).__name__}; its sequences end by EndSymbol"
        )
    if built != kind:
        remedy = "leave stop out" if built == "given" else f"take {_RULES[built]}"
        raise ConfigError(f'{who}: the model must be built with stop="{kind}", got one with stop="{built}"; {remedy}')
    return int(model.border_id)


_RULES = {"end_symbol": "EndSymbol()", "bernoulli_halt": "BernoulliHalt()", "predicted_length": "PredictedLength()"}
