"""Which of the candidates of a step go on, where the likeliest are not simply taken.

Groups (Hamming diversity): group g chooses by s - λ · (how often the groups before it have chosen the token in this
step). Banks (required phrases): see `throughtime.decoding.required`.

Source: Vijayakumar et al. 2018, "Diverse beam search for improved description of complex scenes", eqs. 3 to 5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Of scores (B, n), the indices (B, k) to keep; the group is told.
Choice: TypeAlias = Callable[[Tensor, int], Tensor]


def diverse_choice(
    scores: Float[Tensor, "B G n"], tokens: Int[Tensor, "B G n"], diversity: float, choose: Choice
) -> Int[Tensor, "B G k"]:
    """What each group takes of its n candidates, one group after the other; `choose(scores, group)` chooses for one."""
    taken: list[Tensor] = []
    chosen = tokens[:, 0, :0]  # (B, all that the groups so far have chosen)
    for group in range(scores.shape[1]):
        times = (tokens[:, group, :, None] == chosen[:, None]).sum(-1)  # (B, n)
        # Of a token that nobody has chosen, not even -inf becomes anything else.
        taken.append(choose(scores[:, group] - diversity * times, group))
        chosen = torch.cat([chosen, tokens[:, group].gather(1, taken[-1])], 1)
    return torch.stack(taken, 1)
