"""One step of beam search in C++ against the same by sorting, in plain Python."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from throughtime.errors import ShapeError
from throughtime.kernels.native import library
from throughtime.kernels.native.beam import Lengthened, Penalties, Whole, lengthen

pytestmark = pytest.mark.skipif(bool(library.missing_reason()), reason=str(library.missing_reason()))

FIRST = 1000


class Step(NamedTuple):
    """What a step is given; few values, so that many are equal."""

    scores: Tensor
    log_p: Tensor
    ids: Tensor
    of_end: Tensor
    whole: Whole


def some_step(rows: int, beginnings: int, tokens: int, best: int, seed: int = 0) -> Step:
    generator = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> Tensor:
        return -torch.randint(0, 6, shape, generator=generator).double() / 2

    def of_all(kind: str) -> Tensor:
        values = some(rows * beginnings, tokens) if kind == "each" else some(rows * beginnings)
        return values.masked_fill(values == 0, -math.inf)

    ids = torch.randint(0, 99, (rows * beginnings, tokens), generator=generator)
    ranking = some(rows, best).sort(dim=1, descending=True).values
    ranking[:, best // 2 + 1 :] = -math.inf
    ends = torch.randint(0, FIRST, (rows, best), generator=generator)
    return Step(some(rows, beginnings), of_all("each"), ids, of_all("one"), Whole(ranking, ends))


def plainly(step: Step, kept: int, penalties: Penalties, *, ends: bool) -> tuple[Lengthened, Whole]:
    """The same, row by row."""
    rows, beginnings = step.scores.shape
    count = step.ids.shape[1]
    made: dict[str, list[list[float]]] = {name: [] for name in (*Lengthened._fields, *Whole._fields)}
    for row in range(rows):
        own = range(row * beginnings, (row + 1) * beginnings)
        scores = step.scores[row].tolist()
        best = list(zip(step.whole.ranking[row].tolist(), step.whole.ends[row].tolist(), strict=True))
        size = len(best)
        if ends:
            found = [(scores[j] + float(step.of_end[at])) / penalties.of_ends for j, at in enumerate(own)]
            better = [(value, FIRST + j) for j, value in enumerate(found) if value > -math.inf]
            best = sorted([*best, *better], key=lambda one: -one[0])[:size]
        among = [
            ((scores[j] + float(step.log_p[at, i])), j, int(step.ids[at, i]), float(step.log_p[at, i]))
            for j, at in enumerate(own)
            for i in range(count)
        ]
        chosen = sorted(among, key=lambda one: -one[0] / penalties.of_choice)[:kept]
        made["parents"].append([j for _, j, _, _ in chosen])
        made["tokens"].append([token for _, _, token, _ in chosen])
        made["log_p"].append([log_p for _, _, _, log_p in chosen])
        made["scores"].append([score for score, _, _, _ in chosen])
        made["origins"].append([row * beginnings + j for _, j, _, _ in chosen])
        made["going"].append([chosen[0][0] / penalties.greatest > best[-1][0]])
        made["ranking"].append([value for value, _ in best])
        made["ends"].append([end for _, end in best])
    like = {"log_p": torch.float64, "scores": torch.float64, "ranking": torch.float64, "going": torch.bool}
    tensors = {name: torch.tensor(values, dtype=like.get(name, torch.int64)) for name, values in made.items()}
    going = tensors["going"][:, 0]
    lengthened = [tensors[name] for name in Lengthened._fields[:-1]]
    return Lengthened(*lengthened, None if going.all() else going), Whole(tensors["ranking"], tensors["ends"])


def check(step: Step, kept: int, penalties: Penalties, *, ends: bool) -> None:
    expected, whole = plainly(step, kept, penalties, ends=ends)
    own = Whole(*(part.clone() for part in step.whole))
    found = lengthen(
        step.scores,
        step.log_p,
        step.ids,
        kept,
        own,
        of_end=step.of_end if ends else None,
        first_end=FIRST,
        penalties=penalties,
    )
    assert torch.equal(own.ranking, whole.ranking)
    real = whole.ranking > -math.inf
    assert torch.equal(own.ends[real], whole.ends[real])
    assert torch.equal(found.scores, expected.scores)
    # Of tokens that cannot come, any may be taken.
    can = expected.scores > -math.inf
    for a, b in zip(found[:-1], expected[:-1], strict=True):
        assert torch.equal(a[can], b[can])
    assert (found.going is None) == (expected.going is None)
    if found.going is not None and expected.going is not None:
        assert torch.equal(found.going, expected.going)


sizes = st.integers(1, 5)


@given(
    sizes,
    sizes,
    sizes,
    sizes,
    st.integers(1, 25),
    st.integers(0, 9999),
    st.sampled_from([Penalties(), Penalties(1.5, 2.5, 2.5), Penalties(greatest=4.0)]),
    st.booleans(),
)
def test_a_step_is_that_of_a_sort(
    rows: int, beginnings: int, tokens: int, best: int, kept: int, seed: int, penalties: Penalties, ends: bool
) -> None:
    step = some_step(rows, beginnings, tokens, best, seed)
    check(step, min(kept, beginnings * tokens), penalties, ends=ends)


@pytest.mark.parametrize("kept", [64, 65, 300, 1200])
def test_wide_beams(isa: str, kept: int) -> None:
    check(some_step(2, 40, 30, 70), kept, Penalties(), ends=True)


def test_what_is_no_number_comes_first_and_its_row_does_not_go_on() -> None:
    step = some_step(2, 3, 4, 1)
    step.whole.ranking.fill_(-math.inf)
    step.log_p.fill_(-1.0)
    step.log_p[4, 2] = math.nan
    found = lengthen(step.scores, step.log_p, step.ids, 2, step.whole)
    assert found.scores[1, 0].isnan()
    assert found.parents[1, 0] == 1
    assert found.tokens[1, 0] == step.ids[4, 2]
    assert not found.scores[0].isnan().any()
    assert found.going is not None
    assert found.going.tolist() == [True, False]


def test_tensors_that_do_not_fit_are_refused() -> None:
    scores, log_p, ids, of_end, whole = some_step(2, 3, 4, 1)
    with pytest.raises(ShapeError, match=r"lengthen: log_p must be \(6, 4\) torch.float64, .* not contiguous"):
        lengthen(scores, log_p.T.contiguous().T, ids, 2, whole)
    with pytest.raises(ShapeError, match=r"lengthen: log_p must be \(4, 4\)"):
        lengthen(scores[:, :2].contiguous(), log_p, ids, 2, whole)
    with pytest.raises(ShapeError, match=r"lengthen: ids must be .* not contiguous"):
        lengthen(scores, log_p, ids.T.contiguous().T, 2, whole)
    with pytest.raises(ShapeError, match=r"lengthen: of_end must be .* not contiguous"):
        lengthen(scores, log_p, ids, 2, whole, of_end=of_end.repeat(2)[::2])
    for kept in (0, 13):
        with pytest.raises(ShapeError, match=r"lengthen: kept must be in 1\.\.12, .* got \d+ and 1"):
            lengthen(scores, log_p, ids, kept, whole)
