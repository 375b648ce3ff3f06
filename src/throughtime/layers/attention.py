"""Attention: where in the source a step of the decoder looks.

    α_j(t) = softmax_j score(h(t), m_j)            a distribution over the source's positions
    c(t)   = Σ_j α_j(t) m_j                        the context of step t

    additive   score = vᵀ tanh(W h + U m_j)        Bahdanau, Cho & Bengio 2015, appendix A.1.2
    dot        score = hᵀ m_j                      Luong, Pham & Manning 2015, section 3.1
    general    score = hᵀ W m_j                    the same
    concat     score = vᵀ tanh(W [h; m_j])         the same: additive with one matrix for both

With coverage a step also sees how much the steps before it have looked at each position already, which enters beside
what stands there: u_j + w Σ_{t'<t} α_j(t') in place of u_j, the part of the score that comes from m_j (See, Liu &
Manning 2017, eq. 11; Tu et al. 2016).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from throughtime.errors import ShapeError, UsageError

AttentionKind = Literal["additive", "dot", "general", "concat"]
KINDS = get_args(AttentionKind)
# Numbers of tanh(W h + U m_j) for all steps and positions that stand in memory at once; beyond, they are made anew
# in the backward pass.
_MOST_SUMS = 1 << 22


class Memory(NamedTuple):
    """What a decoder looks at: M numbers for each of S positions of the source.

    values (B, S, M); keys (B, S, A), the part of the score that is the same at every step; inside (B, S), false on
    padding, None where there is none.
    """

    values: Tensor
    keys: Tensor
    inside: Tensor | None

    def select(self, rows: Int[Tensor, " N"]) -> Memory:
        """The memory of the sources `rows`."""
        inside = None if self.inside is None else self.inside[rows]
        return Memory(self.values[rows], self.keys[rows], inside)


class Attended(NamedTuple):
    """context c(t) (B, T, M) and weights α(t) (B, T, S), zero on padding; all zero where a source is empty."""

    context: Tensor
    weights: Tensor


class Attention(nn.Module):
    """Attention of one of four kinds, of queries of size H over a memory of size M.

        >>> import torch
        >>> attention = Attention("general", query_size=4, memory_size=6)
        >>> memory = attention.remember(torch.zeros(7, 2, 6), lengths=torch.tensor([7, 3]))
        >>> attended = attention(torch.zeros(2, 5, 4), memory)
        >>> attended.context.shape, attended.weights[1, 0].tolist()[:4]
        (torch.Size([2, 5, 6]), [0.3333333432674408, 0.3333333432674408, 0.3333333432674408, 0.0])

    Args:
        kind: "additive", "dot", "general" or "concat"; see the module.
        query_size: H.
        memory_size: M.
        coverage: whether `forward` takes the coverage of earlier steps into account.

    Raises:
        UsageError: there is no such kind.
        ShapeError: "dot" of unequal sizes.
    """

    def __init__(self, kind: AttentionKind, query_size: int, memory_size: int, *, coverage: bool = False) -> None:
        super().__init__()
        if kind not in KINDS:
            raise UsageError(f"Attention: kind must be one of {', '.join(KINDS)}, got {kind!r}")
        if kind == "dot" and query_size != memory_size:
            raise ShapeError(
                f'Attention: "dot" needs queries and memory of one size, got {query_size} and {memory_size}; '
                'take "general"'
            )
        self.kind, self.query_size, self.memory_size = kind, query_size, memory_size
        if kind == "general":
            self.weight = _uniform(query_size, memory_size)
        elif kind == "additive":
            self.weight_query = _uniform(query_size, query_size)
            self.weight_memory = _uniform(query_size, memory_size)
            self.direction = _uniform(1, query_size)
        elif kind == "concat":
            self.weight = _uniform(query_size, query_size + memory_size)
            self.direction = _uniform(1, query_size)
        self.weight_coverage = nn.Parameter(torch.zeros(query_size)) if coverage else None

    def remember(self, outputs: Float[Tensor, "S B M"], lengths: Int[Tensor, " B"] | None = None) -> Memory:
        """The memory of an encoder's outputs, time-major as layers give them, with the lengths of the sources.

        Raises:
            ShapeError: outputs that are not (S, B, memory_size).
        """
        if outputs.dim() != 3 or outputs.shape[-1] != self.memory_size:
            raise ShapeError(f"Attention: memory must be (S, B, {self.memory_size}), got {tuple(outputs.shape)}")
        values = outputs.transpose(0, 1).contiguous()  # (B, S, M)
        if self.kind == "dot":
            keys = values
        elif self.kind == "concat":
            keys = functional.linear(values, self.weight[:, self.query_size :])  # (B, S, A)
        else:
            keys = functional.linear(values, self.weight if self.kind == "general" else self.weight_memory)
        inside = None
        if lengths is not None:
            inside = torch.arange(values.shape[1], device=values.device) < lengths[:, None]  # (B, S)
        return Memory(values, keys, inside)

    def forward(
        self, query: Float[Tensor, "B T H"], memory: Memory, coverage: Float[Tensor, "B S"] | None = None
    ) -> Attended:
        """The contexts and the weights of T queries of each source, `coverage` the weights of earlier steps, summed.

        Raises:
            UsageError: coverage for an attention that was made without, or none for one made with it.
        """
        if (coverage is None) != (self.weight_coverage is None):
            made = "without" if self.weight_coverage is None else "with"
            raise UsageError(f"Attention: made {made} coverage, got {'none' if coverage is None else 'some'}")
        keys = memory.keys
        if coverage is not None and self.weight_coverage is not None:
            keys = keys + coverage[..., None] * self.weight_coverage  # (B, S, A)
        scores = self._scores(query, keys)  # (B, T, S)
        weights = _masked_softmax(scores, memory.inside)
        return Attended(torch.bmm(weights, memory.values), weights)

    def _scores(self, query: Tensor, keys: Tensor) -> Tensor:
        if self.kind in ("dot", "general"):
            return torch.bmm(query, keys.mT)
        weight = self.weight_query if self.kind == "additive" else self.weight[:, : self.query_size]
        projected = functional.linear(query, weight)  # (B, T, A)
        steps = max(1, _MOST_SUMS // max(1, keys.numel()))
        if steps >= query.shape[1]:
            return self._sums(projected, keys)
        parts = [checkpoint(self._sums, part, keys, use_reentrant=False) for part in torch.split(projected, steps, 1)]
        return torch.cat(parts, 1)

    def _sums(self, projected: Float[Tensor, "B T A"], keys: Float[Tensor, "B S A"]) -> Float[Tensor, "B T S"]:
        """vᵀ tanh(W h(t) + U m_j) for every step and position."""
        summed = torch.tanh(projected[:, :, None] + keys[:, None])  # (B, T, S, A)
        return functional.linear(summed, self.direction)[..., 0]

    def extra_repr(self) -> str:
        """Kind and sizes."""
        covered = ", coverage=True" if self.weight_coverage is not None else ""
        return f"{self.kind!r}, {self.query_size}, {self.memory_size}{covered}"


def _masked_softmax(scores: Float[Tensor, "B T S"], inside: Bool[Tensor, "B S"] | None) -> Float[Tensor, "B T S"]:
    """The softmax over the positions inside; zeros elsewhere, and everywhere where nothing is inside."""
    if not scores.shape[-1]:
        return scores
    if inside is None:
        return scores.softmax(-1)
    mask = inside[:, None]  # (B, 1, S)
    # The lowest number, not -inf: a source without a position would give nan, and nan gradients.
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~mask, lowest).softmax(-1) * mask


def _uniform(outputs: int, inputs: int) -> nn.Parameter:
    """A matrix of the range of Glorot & Bengio 2010, eq. 16."""
    bound = math.sqrt(6 / (inputs + outputs))
    return nn.Parameter(torch.empty(outputs, inputs).uniform_(-bound, bound))
