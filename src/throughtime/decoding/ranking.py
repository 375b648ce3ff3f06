"""The likeliest next tokens, in an order that nothing but the model decides: equals stand by their index."""

from __future__ import annotations

import math
from typing import Any, cast

from jaxtyping import Float, Int
from torch import Tensor

from throughtime.decoding.protocol import Ranked, Ranking, Steppable


def ranked_step(model: Steppable, tokens: Int[Tensor, " B"], state: Any, k: int, end: int | None) -> Ranked:
    """One step, and the `k` likeliest next tokens after it: by the model's own `rank`, or else from its logits."""
    rank = getattr(model, "rank", None)  # of `Ranking`; isinstance would cost more than all else
    if rank is not None:
        return cast("Ranking", model).rank(tokens, state, k, end)
    logits, state = model.step(tokens, state)
    return ranked(logits, log_normaliser(logits), state, k, end)


def log_normaliser(logits: Float[Tensor, "B V"]) -> Float[Tensor, "B 1"]:
    """log Σ exp of the logits, in float64: what each less this is its log-probability; NaN where none are numbers."""
    greatest = logits.amax(-1, keepdim=True).double()
    return (logits.double() - greatest).exp_().sum(-1, keepdim=True).log_().add_(greatest)


def ranked(
    logits: Float[Tensor, "B V"], normaliser: Float[Tensor, "B 1"], state: Any, k: int, end: int | None
) -> Ranked:
    """The `k` likeliest tokens of logits, -inf where a token is not allowed; `end` apart."""
    of_end = None
    if end is not None:
        of_end = logits[:, end].double() - normaliser[:, 0]  # (B,)
        logits = logits.clone()  # they may be the model's own
        logits[:, end] = -math.inf
    best, ids = likeliest(logits, k)  # (B, k)
    return Ranked(best.double() - normaliser, ids, of_end, state)


def likeliest(values: Float[Tensor, "B n"], k: int) -> tuple[Float[Tensor, "B k"], Int[Tensor, "B k"]]:
    """The `k` greatest of each row and their indices, the greatest first, of equals that with the lower index.

    Of values of -inf, which stand for nothing, any may be taken.
    """
    best, indices = values.topk(min(k + 1, values.shape[1]))  # (B, k + 1)
    # topk takes any of equals; where two are in sight, and one could even stand just outside, a stable sort decides.
    # The difference of two -inf is no number.
    equal = (best[:, :-1] - best[:, 1:]) == 0
    if equal.any():
        rows = equal.any(1).nonzero()[:, 0]
        ordered, order = values[rows].sort(dim=1, descending=True, stable=True)
        width = best.shape[1]
        best, indices = best.index_copy(0, rows, ordered[:, :width]), indices.index_copy(0, rows, order[:, :width])
    return best[:, :k], indices[:, :k]
