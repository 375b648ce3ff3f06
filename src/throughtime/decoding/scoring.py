"""How whole sequences are compared, and when no beginning can become a better one.

    s(Y, X)  = log p(Y | X) / lp(Y) + cp(X; Y)
    lp(Y)    = ((5 + |Y|) / 6)^α
    cp(X; Y) = β Σ_i log min(Σ_j a_ij, 1)

with |Y| the tokens of Y, its end included, and a_ij the attention of the j-th of them to the i-th place of the source.
α = β = 0 compares by log p alone.

As log p only falls, cp is never above 0 and lp grows with |Y|, no sequence that begins with y(1..t) comes to more than
log p(y(1..t)) / lp of the greatest length: once that is no more than the n-th best whole sequence has, a search may
stop without a loss.

Source: Wu et al. 2016, "Google's neural machine translation system", eq. 14.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# What a place that was never looked at counts as: its logarithm must be a number.
_UNSEEN = torch.finfo(torch.float32).tiny


def length_penalty(tokens: int, strength: float) -> float:
    """lp of a sequence of so many tokens, its end included: ((5 + |Y|) / 6)^α."""
    return float(((5 + tokens) / 6) ** strength)


def coverage_penalty(
    coverage: Float[Tensor, "B K S"], source: Bool[Tensor, "B S"], strength: float
) -> Float[Tensor, "B K"]:
    """cp = β Σ_i log min(c_i, 1), over the real places of the `source`, c_i all attention that place i has had.

    A place that was never looked at counts as one with 1.2e-38, the least of float32.
    """
    missing = coverage.clamp(_UNSEEN, 1).log()  # (B, K, S)
    return strength * missing.where(source[:, None], 0).sum(-1)


def unsettled(scores: Float[Tensor, "B K"], worst: Float[Tensor, " B"], greatest_penalty: float) -> Bool[Tensor, " B"]:
    """The rows in which a beginning can still come to more than the `worst` of the best sequences that are whole.

    scores: log p of the beginnings, at most 0. greatest_penalty: lp of the greatest length.
    """
    return scores.amax(1) / greatest_penalty > worst
