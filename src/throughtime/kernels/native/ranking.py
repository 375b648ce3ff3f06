"""The likeliest next tokens of many rows, in C++: what a step of beam search asks of a readout.

    log p(i) = o_i − log Σ_j e^(o_j),    o = c + V h (eq. 10.10)

Logits come a block of columns at a time and go at once into each row's highest logit, sum of exponentials and list of
candidates, so that (N, V) of them never stand in memory. Sums of exponentials are float32 within a block and float64
across blocks: log p is within 1e-5 of that of the same logits in float64. Results depend neither on the number of rows
nor on that of threads; nothing here is differentiable.

Source: Milakov & Gimelshein 2018, "Online normalizer calculation for softmax".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from throughtime.errors import ShapeError
from throughtime.kernels.native import library
from throughtime.kernels.native.tensors import check_tensor, float_tensor


class Ranked(NamedTuple):
    """The likeliest tokens of each row, the best first, of equals the one with the lower id.

    Where a row's logits are no distribution (one is NaN or infinite, or all are -infinite), its log-probabilities are
    NaN, all of them, and its ids mean nothing. A logit of -infinity among others has a log-probability of -infinity.

    log_p: in nats, under all tokens.
    of_end: log p of the token `end`, whatever its rank; None where none was given.
    """

    log_p: Float64[Tensor, "N k"]
    ids: Int64[Tensor, "N k"]
    of_end: Float64[Tensor, " N"] | None


class PackedReadout:
    """A readout c + V h, its weights (V, H) copied once into the order in which products read them.

        >>> import torch
        >>> readout = PackedReadout(torch.eye(3), torch.zeros(3))
        >>> readout.rank(torch.tensor([[0.0, 2.0, 2.0]]), 2, end=None).ids
        tensor([[1, 2]])

    Args:
        weight: (V, H) float32 on the CPU.
        bias: (V) float32 on the CPU, or None for zeros.

    Raises:
        EngineError: the native engine is not there.
        ShapeError: tensors of other shapes or types, or without elements.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        if weight.dim() != 2 or not weight.numel():
            raise ShapeError(f"PackedReadout: weight must be (V, H) with V and H at least 1, got {tuple(weight.shape)}")
        self.vocabulary_size, self.hidden_size = weight.shape
        bias = weight.new_zeros(self.vocabulary_size) if bias is None else bias.detach().contiguous()
        weight = weight.detach().contiguous()
        check_tensor("PackedReadout: weight", weight, (self.vocabulary_size, self.hidden_size))
        check_tensor("PackedReadout: bias", bias, (self.vocabulary_size,))
        self._native: Any = library.load().PackedReadout(
            weight.data_ptr(), bias.data_ptr(), self.vocabulary_size, self.hidden_size, torch.get_num_threads()
        )

    def logits(self, h: Float[Tensor, "N H"]) -> Float32[Tensor, "N V"]:
        """c + V h.

        Raises:
            ShapeError: h is not (N, H) float32, contiguous, on the CPU.
        """
        check_tensor("PackedReadout: h", h, (len(h), self.hidden_size))
        out = float_tensor(len(h), self.vocabulary_size)
        if len(h):
            self._native.logits(h.data_ptr(), len(h), out.data_ptr(), torch.get_num_threads())
        return out

    def rank(self, h: Float[Tensor, "N H"], k: int, *, end: int | None) -> Ranked:
        """The k likeliest tokens after each row of h, `end` left out.

        Raises:
            ShapeError: h is not (N, H) float32, contiguous, on the CPU; k is not in 1..V, or 1..V-1 with an end.
            IndexError: `end` is no token.
        """
        check_tensor("PackedReadout: h", h, (len(h), self.hidden_size))
        _check_ranks("PackedReadout", k, end, self.vocabulary_size)
        found = _empty(len(h), k, end)
        if len(h):
            sizes = (len(h), self.vocabulary_size, k)
            self._native.rank(sizes, _end(end), h.data_ptr(), _addresses(found), torch.get_num_threads())
        return found


def rank_logits(logits: Float[Tensor, "N V"], k: int, *, end: int | None) -> Ranked:
    """The k likeliest tokens of logits that are there, `end` left out: the same as `PackedReadout.rank` of theirs.

    Raises:
        EngineError: the native engine is not there.
        ShapeError: logits are not (N, V) float32, contiguous, on the CPU; k is not in 1..V, or 1..V-1 with an end.
        IndexError: `end` is no token.
    """
    rows, vocabulary = logits.shape
    check_tensor("rank_logits: logits", logits, (rows, vocabulary))
    _check_ranks("rank_logits", k, end, vocabulary)
    found = _empty(rows, k, end)
    if rows:
        native: Any = library.load()
        sizes = (rows, vocabulary, k)
        native.rank_logits(sizes, _end(end), logits.data_ptr(), _addresses(found), torch.get_num_threads())
    return found


def _empty(rows: int, k: int, end: int | None) -> Ranked:
    return Ranked(
        torch.empty(rows, k, dtype=torch.float64, device="cpu"),
        torch.empty(rows, k, dtype=torch.int64, device="cpu"),
        None if end is None else torch.empty(rows, dtype=torch.float64, device="cpu"),
    )


def _end(end: int | None) -> int:
    return -1 if end is None else end


def _addresses(found: Ranked) -> tuple[int, int, int]:
    log_p, ids, of_end = found
    return log_p.data_ptr(), ids.data_ptr(), 0 if of_end is None else of_end.data_ptr()


def _check_ranks(who: str, k: int, end: int | None, vocabulary: int) -> None:
    """Whether there are so many tokens to rank.

    Raises:
        ShapeError, IndexError: see `PackedReadout.rank`.
    """
    if end is not None and not 0 <= end < vocabulary:
        raise IndexError(f"{who}: end must be a token, 0..{vocabulary - 1}, got {end}")
    most = vocabulary - (end is not None)
    if not 1 <= k <= most:
        raise ShapeError(f"{who}: k must be in 1..{most}, the tokens there are to rank, got {k}")
