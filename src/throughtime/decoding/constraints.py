"""Which next tokens a beginning may have: no end of a banned phrase, no n-gram twice, and its prefix before all else.

What may not come has a logit of -inf; the others keep theirs, and are normalised with all, so that scores stay the
model's own.

    banned y(1..n)     y(n) may not follow y(1..n-1)
    n-grams            y may not follow the n-1 last tokens if it has followed them before

Source: Paulus, Xiong & Socher 2018, "A deep reinforced model for abstractive summarization", section 2.5 (n-grams).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from throughtime.decoding.phrases import Phrase
from throughtime.decoding.search import Search


class Constraints:
    """The rules of a `Search` that depend on what a beginning has written."""

    def __init__(self, search: Search, rows: int, device: torch.device) -> None:
        self._ngram = search.no_repeat_ngram
        phrases = _longer(search)
        sizes = sorted(set(map(len, phrases)))
        # Of each size n: what comes first (P, n-1), and what may not follow (P,).
        self._banned = [
            torch.tensor([phrase for phrase in phrases if len(phrase) == size], device=device) for size in sizes
        ]
        prefixes = search.prefixes(rows)
        longest = max(map(len, prefixes), default=0)
        padded = [[*prefix, *[-1] * (longest - len(prefix))] for prefix in prefixes]
        self._prefixes = torch.tensor(padded, dtype=torch.int64, device=device)  # (B, P), -1 behind

    @staticmethod
    def of(search: Search, rows: int, device: torch.device) -> Constraints | None:
        """The rules, where there are any."""
        needed = _longer(search) or search.no_repeat_ngram or any(search.prefixes(rows))
        return Constraints(search, rows, device) if needed else None

    def allowed(
        self, logits: Float[Tensor, "B K V"], written: Int[Tensor, "B K t"], rows: Int[Tensor, " B"]
    ) -> Float[Tensor, "B K V"]:
        """The logits of what may come next after `written`, -inf for all else. rows: whose prefix each row has."""
        for phrases in self._banned:
            begins = _follows(written, phrases[:, :-1])  # (B, K, P)
            logits = _without(logits, phrases[:, -1].expand_as(begins), begins)
        if self._ngram and written.shape[-1] >= self._ngram:
            ngrams = written.unfold(-1, self._ngram, 1)  # (B, K, W, n)
            again = _follows(written, ngrams[..., :-1])  # (B, K, W)
            logits = _without(logits, ngrams[..., -1], again)
        step = written.shape[-1]
        if step < self._prefixes.shape[1]:
            wanted = self._prefixes[rows, step]  # (B,)
            others = torch.arange(logits.shape[-1], device=logits.device) != wanted[:, None]  # (B, V)
            logits = logits.masked_fill((others & (wanted >= 0)[:, None])[:, None], -math.inf)
        return logits


def _longer(search: Search) -> list[Phrase]:
    """The banned phrases of several tokens, which count only behind others."""
    return [phrase for phrase in search.banned_phrases if len(phrase) > 1]


def _follows(written: Int[Tensor, "B K t"], beginnings: Tensor) -> Tensor:
    """Whether `written` ends with each of the beginnings (P, n-1) or (B, K, P, n-1): (B, K, P) bool."""
    size, step = beginnings.shape[-1], written.shape[-1]
    shape = (*written.shape[:2], beginnings.shape[-2])
    if step < size:
        return torch.zeros(shape, dtype=torch.bool, device=written.device)
    return (written[:, :, None, step - size :] == beginnings).all(-1).expand(shape)


def _without(logits: Float[Tensor, "B K V"], tokens: Int[Tensor, "B K W"], which: Tensor) -> Float[Tensor, "B K V"]:
    """-inf for those of the tokens that `which` tells."""
    vocabulary = logits.shape[-1]
    forbidden = torch.zeros(*logits.shape[:2], vocabulary + 1, dtype=torch.bool, device=logits.device)
    # All others mark a column behind the vocabulary.
    forbidden.scatter_(-1, torch.where(which, tokens, vocabulary), True)
    return logits.masked_fill(forbidden[..., :vocabulary], -math.inf)
