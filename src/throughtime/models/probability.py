"""The probability of sequences, step by step and as a whole."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class SequenceLogProb(NamedTuple):
    """log p in nats: of each step (T, B), zero behind a sequence's length, and of each sequence (B,).

    Where the length of a sequence is random too, there is one row more than targets: see `ContextToSequence`.
    """

    steps: Tensor
    total: Tensor
