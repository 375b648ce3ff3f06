"""One step of beam search in C++: which whole sequences are among a row's best, and which beginnings go on, and how.

Some numbers for each of a few rows: what takes time is not to compute them, but to ask for it operation by operation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from throughtime.errors import ShapeError
from throughtime.kernels.native import library
from throughtime.kernels.native.tensors import check_tensor


class Whole(NamedTuple):
    """The N best whole sequences of each row, the best first, of equals the one that was found earlier.

    ranking: what they are ordered by, -inf where there are fewer. ends: how each is called.
    """

    ranking: Float64[Tensor, "B N"]
    ends: Int64[Tensor, "B N"]


class Penalties(NamedTuple):
    """What log p is divided by, all above 0: of whole sequences, of beginnings to choose, and of none that may come."""

    of_ends: float = 1.0
    of_choice: float = 1.0
    greatest: float = 1.0


class Lengthened(NamedTuple):
    """The K' beginnings that go on in each row, the best first, of equals the one in front.

    parents: which of the K old ones each lengthens. tokens: by what. log_p: of these tokens. scores: log p of the
    beginnings now. origins: `parents` among those of all rows. going: rows that can still come to a better sequence
    than the worst of their best; None where all can. A row with scores that are no numbers cannot, and has one of them
    first.
    """

    parents: Int64[Tensor, "B K2"]
    tokens: Int64[Tensor, "B K2"]
    log_p: Float64[Tensor, "B K2"]
    scores: Float64[Tensor, "B K2"]
    origins: Int64[Tensor, "B K2"]
    going: Bool[Tensor, " B"] | None


def lengthen(
    scores: Float64[Tensor, "B K"],
    log_p: Float64[Tensor, "N k"],
    ids: Int64[Tensor, "N k"],
    kept: int,
    whole: Whole,
    *,
    of_end: Float64[Tensor, " N"] | None = None,
    first_end: int = 0,
    penalties: Penalties = Penalties(),  # noqa: B008  it cannot be changed
) -> Lengthened:
    """Lengthen the K beginnings of every row by one of k tokens each, keep the `kept` best, and those that end here.

    Args:
        scores: log p of the beginnings.
        log_p: of the tokens that may follow each, B · K = N.
        ids: these tokens.
        kept: K', at most K · k.
        whole: brought up to date, in its place.
        of_end: log p of the end after each beginning; None: none ends here.
        first_end: how the sequence is called that ends at a row's first beginning; at the next one, one more.
        penalties: above 0.

    Raises:
        EngineError: the native engine is not there.
        ShapeError: tensors of other shapes, types or layouts, or `kept` is not in 1..K · k.
    """
    (rows, beginnings), tokens_each, best = scores.shape, log_p.shape[1], whole.ranking.shape[1]
    shapes: dict[str, tuple[int, ...]] = {
        "log_p": (rows * beginnings, tokens_each),
        "ranking": (rows, best),
        "scores": (rows, beginnings),
    }
    given = {"scores": scores, "log_p": log_p, "ranking": whole.ranking}
    if of_end is not None:
        given["of_end"], shapes["of_end"] = of_end, (rows * beginnings,)
    for name, tensor in given.items():
        check_tensor(f"lengthen: {name}", tensor, shapes[name], torch.float64)
    for name, tensor, like in (("ids", ids, "log_p"), ("ends", whole.ends, "ranking")):
        check_tensor(f"lengthen: {name}", tensor, shapes[like], torch.int64)
        given[name] = tensor
    if not 1 <= kept <= beginnings * tokens_each or not best:
        raise ShapeError(f"lengthen: kept must be in 1..{beginnings * tokens_each}, the beginnings there are to choose "
                         f"among, and ranking at least 1 wide, got {kept} and {best}")  # fmt: skip
    wholes, reals = _made(rows, kept, torch.int64), _made(rows, kept, torch.float64)
    made = Lengthened(next(wholes), next(wholes), next(reals), next(reals), next(wholes), None)
    going = torch.empty(rows, dtype=torch.bool, device="cpu")
    given |= {
        "parents": made.parents,
        "tokens": made.tokens,
        "added": made.log_p,
        "scores_after": made.scores,
        "origins": made.origins,
        "going": going,
    }
    native: Any = library.load()
    sizes = (rows, beginnings, tokens_each, kept, best)
    addresses = {name: tensor.data_ptr() for name, tensor in given.items()}
    count = native.lengthen(sizes, tuple(penalties), first_end, addresses)
    return made if count == rows else made._replace(going=going)


def _made(rows: int, kept: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """Tensors (B, K') of one type, of one allocation."""
    return iter(torch.empty(3, rows, kept, dtype=dtype, device="cpu").unbind())
