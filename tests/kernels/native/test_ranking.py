"""The native ranking against plain torch in float64, and the laws that it keeps: rows and threads change nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from throughtime.errors import ShapeError
from throughtime.kernels.native import library
from throughtime.kernels.native.ranking import PackedReadout, Ranked, rank_logits

pytestmark = pytest.mark.skipif(bool(library.missing_reason()), reason=str(library.missing_reason()))

# Rows, units and tokens; tokens around one vector and one block of columns of every instruction set.
SIZES = [
    (1, 1, 1),
    (5, 3, 15),
    (2, 512, 40),
    (7, 33, 128),
    (193, 5, 129),
    (400, 17, 300),
    (40, 65, 1000),
    (3, 8, 8001),
]


def some_readout(rows: int, units: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, bias and rows; logits spread over several nats."""
    generator = torch.Generator().manual_seed(rows + 7 * units + 49 * tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return normal(tokens, units) * 3 / units**0.5, normal(tokens), normal(rows, units)


def plainly(logits: Tensor, k: int, end: int | None) -> Ranked:
    """The same by a stable sort in float64."""
    log_p = logits.double().log_softmax(-1)
    of_end = None if end is None else log_p[:, end].clone()
    order = logits.double().sort(dim=-1, descending=True, stable=True).indices
    if end is not None:
        order = order[order != end].view(len(logits), -1)
    ids = order[:, :k]
    return Ranked(log_p.gather(1, ids), ids, of_end)


def assert_same(found: Ranked, expected: Ranked) -> None:
    assert torch.equal(found.ids, expected.ids)
    torch.testing.assert_close(found.log_p, expected.log_p, rtol=0, atol=1e-5)
    assert (found.of_end is None) == (expected.of_end is None)
    if found.of_end is not None and expected.of_end is not None:
        torch.testing.assert_close(found.of_end, expected.of_end, rtol=0, atol=1e-5)


def equal(one: Ranked, other: Ranked) -> bool:
    return all(a is b is None or torch.equal(a, b) for a, b in zip(one, other, strict=True))  # type: ignore[arg-type]


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "units", "tokens"), SIZES)
def test_ranks_are_those_of_a_sort(isa: str, rows: int, units: int, tokens: int) -> None:
    weight, bias, h = some_readout(rows, units, tokens)
    readout = PackedReadout(weight, bias)
    logits = readout.logits(h)
    expected = h.double() @ weight.double().T + bias.double()
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=3e-5)
    for end in (None, 0, tokens - 1, tokens // 2):
        most = tokens - (end is not None)
        for k in {min(k, most) for k in (1, 5, 64, 65, tokens)} - {0}:
            found = readout.rank(h, k, end=end)
            assert_same(found, plainly(logits, k, end))
            assert equal(found, rank_logits(logits, k, end=end))


def test_without_a_bias_it_is_zero(isa: str) -> None:
    weight, bias, h = some_readout(3, 8, 20)
    found = PackedReadout(weight).logits(h)
    assert torch.equal(found, PackedReadout(weight, torch.zeros_like(bias)).logits(h))
    torch.testing.assert_close(found, h @ weight.T)


def test_a_readout_keeps_its_own_copy_of_the_weights(isa: str) -> None:
    weight, bias, h = some_readout(3, 8, 20)
    readout = PackedReadout(weight.T.contiguous().T, bias)
    before = readout.logits(h)
    weight.zero_()
    bias.zero_()
    assert torch.equal(readout.logits(h), before)


@given(
    rows=st.integers(1, 9),
    tokens=st.integers(1, 150),
    levels=st.integers(1, 3),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_equals_stand_by_their_ids(rows: int, tokens: int, levels: int, seed: int, data: st.DataObject) -> None:
    torch.manual_seed(seed)
    logits = torch.randint(levels, (rows, tokens)).float()
    end = data.draw(st.one_of(st.none(), st.integers(0, tokens - 1))) if tokens > 1 else None
    k = data.draw(st.integers(1, tokens - (end is not None)))
    assert_same(rank_logits(logits, k, end=end), plainly(logits, k, end))


def test_tokens_that_cannot_be_are_ranked_last(isa: str) -> None:
    logits = torch.full((2, 200), -torch.inf)
    logits[0, [3, 150, 199]] = torch.tensor([1.0, 2.0, 1.0])
    logits[1, 77] = 5.0
    found = rank_logits(logits, 5, end=77)
    assert found.ids.tolist() == [[150, 3, 199, 0, 1], [0, 1, 2, 3, 4]]
    assert (found.log_p[0, 3:] == -torch.inf).all()
    assert (found.log_p[1] == -torch.inf).all()
    assert found.of_end is not None
    assert found.of_end.tolist() == [-torch.inf, 0.0]
    assert_same(rank_logits(logits, 3, end=None), plainly(logits, 3, None))


def test_logits_far_apart_neither_overflow_nor_vanish(isa: str) -> None:
    logits = torch.zeros(3, 300)
    logits[0, 5], logits[1, 299], logits[2] = 3e38, -3e38, -3e38
    for end in (None, 5, 299):
        assert_same(rank_logits(logits, 7, end=end), plainly(logits, 7, end))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", [0, 16, 129, 299])
def test_a_row_that_is_no_distribution_is_told_and_disturbs_no_other(isa: str, value: float, place: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 300)
    intact = rank_logits(logits, 4, end=2)
    logits[1, place] = value
    found = rank_logits(logits, 4, end=2)
    assert found.of_end is not None
    assert found.log_p[1].isnan().all()
    assert found.of_end[1].isnan()
    assert ((found.ids >= 0) & (found.ids < 300)).all()
    for row in (0, 2):
        assert torch.equal(found.log_p[row], intact.log_p[row])
        assert torch.equal(found.ids[row], intact.ids[row])
    nothing = rank_logits(torch.full((1, 300), -torch.inf), 4, end=2)
    assert nothing.log_p.isnan().all()


def test_no_rows_are_no_ranks() -> None:
    readout = PackedReadout(torch.ones(4, 3))
    for found in (readout.rank(torch.empty(0, 3), 2, end=1), rank_logits(torch.empty(0, 4), 2, end=1)):
        assert found.log_p.shape == found.ids.shape == (0, 2)
        assert found.of_end is not None
        assert found.of_end.shape == (0,)
    assert readout.rank(torch.empty(0, 3), 2, end=None).of_end is None
    assert readout.logits(torch.empty(0, 3)).shape == (0, 4)


# -- laws --------------------------------------------------------------------------------------------------------------


def test_a_row_is_the_same_among_any_number_of_rows(isa: str) -> None:
    weight, bias, h = some_readout(400, 100, 300)
    readout = PackedReadout(weight, bias)
    everyone = readout.rank(h, 9, end=3)
    for first, count in ((0, 1), (17, 2), (399, 1), (100, 16), (50, 193)):
        some = readout.rank(h[first : first + count], 9, end=3)
        expected = Ranked(*(part[first : first + count] for part in everyone if part is not None))
        assert equal(some, expected)


@pytest.mark.parametrize("tokens", [40, 3000])
def test_the_result_does_not_depend_on_the_number_of_threads(
    isa: str, tokens: int, threads: Callable[[int], None]
) -> None:
    weight, bias, h = some_readout(130, 400, tokens)
    weight[tokens // 2 :] = weight[: tokens // 2]  # equals, of which different threads may have one each
    bias[tokens // 2 :] = bias[: tokens // 2]
    results = []
    for count in (1, 2, 3):
        threads(count)
        readout = PackedReadout(weight, bias)
        logits = readout.logits(h)
        results.append([logits, *readout.rank(h, 7, end=1), *rank_logits(logits.repeat(20, 1), 7, end=1)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))  # type: ignore[arg-type]


# -- misuse ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked_shapes")
def test_what_the_native_code_would_trust_is_checked() -> None:
    readout = PackedReadout(torch.ones(4, 3))
    expected = r"PackedReadout: h must be \(2, 3\) torch.float32, contiguous, on the CPU, got "
    for wrong, told in (
        (torch.ones(2, 4), r"\(2, 4\)"),
        (torch.ones(2, 3).double(), r"\(2, 3\) torch.float64"),
        (torch.ones(3, 2).T, r"\(2, 3\) torch.float32 not contiguous"),
    ):
        with pytest.raises(ShapeError, match=expected + told):
            readout.rank(wrong, 1, end=None)
        with pytest.raises(ShapeError, match=expected + told):
            readout.logits(wrong)
    with pytest.raises(ShapeError, match=r"rank_logits: logits must be \(4, 2\) torch.float32, contiguous"):
        rank_logits(torch.ones(2, 4).T, 1, end=None)
    for k, end, told in ((0, None, "4"), (5, None, "4"), (4, 0, "3")):
        with pytest.raises(ShapeError, match=rf"k must be in 1\.\.{told}, the tokens there are to rank, got {k}"):
            readout.rank(torch.ones(2, 3), k, end=end)
        with pytest.raises(ShapeError, match=rf"rank_logits: k must be in 1\.\.{told}"):
            rank_logits(torch.ones(2, 4), k, end=end)
    for end in (-1, 4):
        with pytest.raises(IndexError, match=rf"PackedReadout: end must be a token, 0\.\.3, got {end}"):
            readout.rank(torch.ones(2, 3), 1, end=end)
    with pytest.raises(ShapeError, match=r"weight must be \(V, H\) with V and H at least 1, got \(0, 3\)"):
        PackedReadout(torch.ones(0, 3))
    with pytest.raises(ShapeError, match=r"PackedReadout: bias must be \(4,\) torch.float32"):
        PackedReadout(torch.ones(4, 3), torch.ones(5))
