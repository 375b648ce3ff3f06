"""Which tokens may be chosen, and how likely: functions on logits (B, V), each with its source.

`Filters` applies them in this order: repetition penalty, temperature, top-k, top-p, min-p. The last three see the
probabilities that temperature made, each among the tokens that the one before it left. A token that may not be
chosen has a logit of -inf; the likeliest token always stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral

from jaxtyping import Bool, Float
from torch import Tensor

from throughtime.errors import ConfigError


def penalise_repetition(
    logits: Float[Tensor, "B V"], seen: Bool[Tensor, "B V"], penalty: float
) -> Float[Tensor, "B V"]:
    """Make tokens that a row has `seen` less likely: positive logits are divided by `penalty`, others multiplied.

    Source: Keskar et al. 2019, "CTRL", section 4.1, which divides only; a negative logit divided would gain.
    """
    return logits.where(~seen, (logits / penalty).where(logits > 0, logits * penalty))


def scale_by_temperature(logits: Float[Tensor, "B V"], temperature: float) -> Float[Tensor, "B V"]:
    """log-probabilities up to a constant of p ∝ exp(logits / temperature).

    At 0, the limit: only the likeliest token stays (the first of equals).

    Source: Ackley, Hinton & Sejnowski 1985, "A learning algorithm for Boltzmann machines".
    """
    if temperature == 0:
        likeliest = logits.argmax(-1, keepdim=True)  # (B, 1)
        return logits.new_full(logits.shape, -math.inf).scatter(-1, likeliest, 0.0)
    # The largest becomes 0 first, so that no temperature, however small, can overflow it.
    return (logits - logits.amax(-1, keepdim=True)) / temperature


def keep_top_k(logits: Float[Tensor, "B V"], k: int) -> Float[Tensor, "B V"]:
    """Keep the `k` likeliest tokens, and those as likely as the k-th; 0 keeps all.

    Source: Fan, Lewis & Dauphin 2018, "Hierarchical neural story generation".
    """
    if k == 0 or k >= logits.shape[-1]:
        return logits
    least = logits.topk(k).values[:, -1:]  # (B, 1)
    return logits.masked_fill(logits < least, -math.inf)


def keep_top_p(logits: Float[Tensor, "B V"], p: float) -> Float[Tensor, "B V"]:
    """Keep the nucleus: the fewest likeliest tokens whose probabilities sum to `p` or more; 1 keeps all.

    Source: Holtzman et al. 2020, "The curious case of neural text degeneration", eqs. 2 and 3.
    """
    if p >= 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(-1)
    outside = probabilities.cumsum(-1).roll(1, -1) >= p  # (B, V): whether the likelier ones sum to p already
    outside[:, 0] = False
    return logits.masked_fill(outside.scatter(-1, order, outside), -math.inf)


def keep_min_p(logits: Float[Tensor, "B V"], fraction: float) -> Float[Tensor, "B V"]:
    """Keep the tokens at least `fraction` times as likely as the likeliest; 0 keeps all.

    Source: Nguyen et al. 2024, "Turning up the heat: min-p sampling".
    """
    if fraction == 0:
        return logits
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(fraction), -math.inf)


@dataclass(frozen=True)
class Filters:
    """All filters with their settings; the defaults leave the model's own distribution as it is.

    Raises:
        ConfigError: a setting is out of its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        ranges = {
            "temperature": (0 <= self.temperature < math.inf, "a number >= 0"),
            "top_k": (isinstance(self.top_k, Integral) and self.top_k >= 0, "a number of tokens >= 0 (0: off)"),
            "top_p": (0 <= self.top_p <= 1, "a probability in 0..1 (1: off)"),
            "min_p": (0 <= self.min_p <= 1, "a fraction in 0..1 (0: off)"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "a number > 0 (1: off)"),
        }
        faults = [
            f"{name} must be {expected}, got {getattr(self, name)}"
            for name, (good, expected) in ranges.items()
            if not good
        ]
        if faults:
            raise ConfigError(f"sampling: {'; '.join(faults)}")

    @property
    def counts_repetitions(self) -> bool:
        """Whether `seen` is needed."""
        return self.repetition_penalty != 1

    def apply(self, logits: Float[Tensor, "B V"], seen: Bool[Tensor, "B V"] | None = None) -> Float[Tensor, "B V"]:
        """Logits of the distribution to draw from, in float64.

        `seen` marks the tokens of each row's prompt and output; it is needed where `counts_repetitions`.
        """
        result = logits.double()
        if self.counts_repetitions and seen is not None:
            result = penalise_repetition(result, seen, self.repetition_penalty)
        if self.temperature != 1:
            result = scale_by_temperature(result, self.temperature)
        result = keep_top_k(result, self.top_k)
        result = keep_top_p(result, self.top_p)
        return keep_min_p(result, self.min_p)
