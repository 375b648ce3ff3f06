"""The likeliest next tokens, in an order that nothing but the model decides: equals stand by their index."""

from __future__ import annotations

import math
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from throughtime.decoding.protocol import Ranked, Ranking, Steppable


def ranked_step(model: Steppable, tokens: Int[Tensor, " B"], state: Any, k: int, end: int | None) -> Ranked:
    """One step, and the `k` likeliest next tokens after it: by the model's own `rank`, or else from its logits."""
    if isinstance(model, Ranking):
        return model.rank(tokens, state, k, end)
    logits, state = model.step(tokens, state)
    return ranked(logits.double().log_softmax(-1), state, k, end)


def ranked(log_p: Float[Tensor, "B V"], state: Any, k: int, end: int | None) -> Ranked:
    """The `k` likeliest of tokens with these log-probabilities, which are changed; `end` apart."""
    of_end = None
    if end is not None:
        of_end = log_p[:, end].clone()  # (B,)
        log_p[:, end] = -math.inf
    best, ids = likeliest(log_p, k)  # (B, k)
    return Ranked(best, ids, of_end, state)


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
