"""Phrases that every sequence must hold: how far each beginning has come with them, and a fair share of the beam.

The beginnings of a beam stand in banks, by the tokens of required phrases that they have met,

    m = Σ_{phrases met} their lengths + max_{other phrases} (tokens of it that the beginning ends with)

and the beam takes of each bank the best, from that with the most met to that with the least, then the second best of
each, and so on. A beginning with m < C, all tokens required, can come to m + 1 with its next token, if no other rule
forbids that one; so the greatest m of a beam grows with every step, and after C steps one beginning has met all,
however narrow the beam is.

Source: Post & Vilar 2018, "Fast lexically constrained decoding with dynamic beam allocation for neural machine
translation"; the order of the choice: Hu et al. 2019, "Improved lexically constrained decoding for translation and
monolingual rewriting". Progress within a phrase: Knuth, Morris & Pratt 1977.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from throughtime.decoding.phrases import longest_beginning


class RequiredPhrases:
    """The phrases as automata: with p of a phrase's tokens met, and one more token, how many are met then.

    total: C, the tokens of all phrases. tokens: (R,) those that occur in them.
    """

    def __init__(self, phrases: tuple[tuple[int, ...], ...], vocabulary: int, device: torch.device) -> None:
        distinct = sorted({token for phrase in phrases for token in phrase})
        self.total = sum(map(len, phrases))
        self.tokens = torch.tensor(distinct, dtype=torch.int64, device=device)
        self._sizes = torch.tensor([len(phrase) for phrase in phrases], dtype=torch.int64, device=device)  # (P,)
        # Tokens that occur in no phrase are all alike: class 0.
        self._classes = torch.zeros(vocabulary, dtype=torch.int64, device=device)
        self._classes[self.tokens] = torch.arange(1, len(distinct) + 1, device=device)
        longest = max(map(len, phrases))
        following = torch.zeros(len(phrases), longest + 1, len(distinct) + 1, dtype=torch.int64)
        for row, phrase in enumerate(phrases):
            following[row, len(phrase)] = len(phrase)  # once met, for good
            for met in range(len(phrase)):
                for index, token in enumerate(distinct, 1):
                    following[row, met, index] = longest_beginning((*phrase[:met], token), phrase)
        self._following = following.to(device)
        self._each = torch.arange(len(phrases), device=device)

    def begin(self, rows: int) -> Int[Tensor, "B 1 P"]:
        """Nothing is met."""
        return torch.zeros(rows, 1, len(self._sizes), dtype=torch.int64, device=self._sizes.device)

    def after(self, progress: Int[Tensor, "B K P"], tokens: Int[Tensor, "B K n"]) -> Int[Tensor, "B K n P"]:
        """How far each beginning is with every phrase after each of n tokens."""
        return self._following[self._each, progress[:, :, None], self._classes[tokens][..., None]]

    def met(self, progress: Int[Tensor, "*B P"]) -> Int[Tensor, "*B"]:
        """m of the module's equation; it is C where, and only where, all phrases are met."""
        whole = progress == self._sizes
        return (self._sizes * whole).sum(-1) + progress.masked_fill(whole, 0).amax(-1)


def fair_choice(scores: Float[Tensor, "B n"], banks: Int[Tensor, "B n"], total: int, count: int) -> Int[Tensor, "B k"]:
    """Of n candidates the `count` to keep: the best of each bank, those of the greatest first, then the second best.

    What has a score of -inf is taken last. banks: 0..total.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    ordered = banks.gather(1, order)
    possible = scores.gather(1, order) > -math.inf
    members = torch.nn.functional.one_hot(ordered, total + 1)  # (B, n, C + 1)
    place = members.cumsum(1).gather(2, ordered[..., None])[..., 0]  # (B, n), from 1, within its bank
    turn = (place * (total + 1) - ordered).masked_fill(~possible, torch.iinfo(torch.int64).max)
    return order.gather(1, turn.argsort(dim=1, stable=True)[:, :count])
