"""One step of beam search in C++: which whole sequences are among a row's best, and which beginnings go on, and how.

Some numbers for each of a few rows: what takes time is not to compute them, but to ask for it operation by operation.
"""

from __future__ import annotations

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


_NO_PENALTIES = Penalties()


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
    penalties: Penalties = _NO_PENALTIES,
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
    parents, tokens, origins = torch.empty(3, rows, kept, dtype=torch.int64, device="cpu").unbind()
    added, scores_after = torch.empty(2, rows, kept, dtype=torch.float64, device="cpu").unbind()
    going = torch.empty(rows, dtype=torch.bool, device="cpu")
    given |= {
        "parents": parents,
        "tokens": tokens,
        "added": added,
        "scores_after": scores_after,
        "origins": origins,
        "going": going,
    }
    native: Any = library.load()
    sizes = (rows, beginnings, tokens_each, kept, best)
    addresses = {name: tensor.data_ptr() for name, tensor in given.items()}
    count = native.lengthen(sizes, tuple(penalties), first_end, addresses)
    return Lengthened(parents, tokens, added, scores_after, origins, None if count == rows else going)
