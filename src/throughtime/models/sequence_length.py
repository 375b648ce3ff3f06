"""Three ways for a network to say how long its sequence is, each a distribution over sequences of all lengths.

    end_symbol         one more category, the end: p(y, τ) = Π_{t≤τ} p(y(t)) · p(end at τ+1)
    bernoulli_halt     before each y(t) the network halts with probability s(t) or goes on:
                       p(y, τ) = Π_{t≤τ} (1 - s(t)) p(y(t)) · s(τ+1)
    predicted_length   τ is drawn first, and τ-t is an input of step t: p(y, τ) = p(τ) Π_{t≤τ} p(y(t))

The first two take one step more than the sequence has, in which it ends; they allow every length, zero among them. The
third allows lengths up to a greatest one. Where the length is given from outside (`given`) it has no probability.

Source: Goodfellow, Bengio & Courville 2016, end of section 10.2.3, which names Schmidhuber 2012 for the end symbol and
Goodfellow et al. 2014 for the predicted length.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

StopKind = Literal["given", "end_symbol", "bernoulli_halt", "predicted_length"]


def with_end(targets: Int[Tensor, "T B"], lengths: Int[Tensor, " B"], end: int) -> Int[Tensor, "T1 B"]:
    """Targets with the end symbol behind each sequence's last one."""
    longer = functional.pad(targets, (0, 0, 0, 1))
    return longer.scatter(0, lengths[None], end)


def halting(
    halt: Float[Tensor, "T1 B"], symbols: Float[Tensor, "T1 B"], lengths: Int[Tensor, " B"]
) -> Float[Tensor, "T1 B"]:
    """log p of each step: to go on and log p(y(t)) within the length, to halt behind it; `halt` are logits of s(t)."""
    t = torch.arange(len(halt), device=halt.device)[:, None]
    going = functional.logsigmoid(-halt) + symbols
    return torch.where(t < lengths, going, torch.where(t == lengths, functional.logsigmoid(halt), 0.0))


def halted(halt: Float[Tensor, "T B"], uniform: Float[Tensor, "T B"]) -> Int[Tensor, " B"]:
    """The lengths at which sequences halt, given uniform numbers: the first step with s(t) above its number."""
    return first(uniform < torch.sigmoid(halt))


def first(ends: Tensor) -> Int[Tensor, " B"]:
    """The first step of each column (T, B) that is true; T where there is none."""
    return (~ends).long().cumprod(0).sum(0)


def remaining(lengths: Int[Tensor, " B"], steps: int, max_length: int) -> Float[Tensor, "T B 1"]:
    """τ-t at each step, as a part of the greatest length."""
    t = torch.arange(1, steps + 1, device=lengths.device)[:, None]
    return ((lengths - t).clamp(min=0) / max_length)[..., None]
