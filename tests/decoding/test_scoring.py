"""How whole sequences are compared."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given as such_that
from hypothesis import strategies as st

from throughtime.decoding.scoring import coverage_penalty, length_penalty, unsettled


def test_the_penalty_of_a_length() -> None:
    assert [length_penalty(tokens, 1.0) for tokens in (1, 7, 13)] == [1.0, 2.0, 3.0]
    assert length_penalty(7, 0.5) == pytest.approx(math.sqrt(2))
    assert length_penalty(1000, 0.0) == 1.0


def test_what_was_left_out_of_the_source() -> None:
    coverage = torch.tensor([[[0.5, 2.0, 0.25], [1.0, 1.0, 0.0]], [[0.1, 0.0, 9.0], [1.0, 0.0, 0.0]]]).double()
    source = torch.tensor([[True, True, True], [True, False, True]])
    found = coverage_penalty(coverage, source, 2.0)
    unseen = math.log(1.1754943508222875e-38)
    right = [[2 * math.log(0.125), 2 * unseen], [2 * math.log(0.1), 2 * unseen]]
    torch.testing.assert_close(found, torch.tensor(right, dtype=torch.float64))


@such_that(
    st.floats(-60, 0),
    st.floats(0, 5),
    st.integers(0, 20),
    st.lists(st.floats(-9, 0), min_size=1, max_size=20),
    st.data(),
)
def test_no_beginning_comes_to_more_than_its_bound(
    score: float, strength: float, begun: int, more: list[float], data: st.DataObject
) -> None:
    """Whatever follows: a row that is settled by what is reached is settled for good."""
    reached = (score + math.fsum(more)) / length_penalty(begun + len(more), strength)
    reached += data.draw(st.floats(-5, 0))
    greatest = length_penalty(begun + len(more) + data.draw(st.integers(0, 9)), strength)
    scores = torch.tensor([[score - 1, score]], dtype=torch.float64)
    just_below = math.nextafter(reached, -math.inf) - 1e-9
    assert unsettled(scores, torch.tensor([just_below], dtype=torch.float64), greatest).all()
    # The bound itself is no gain.
    assert not unsettled(scores, scores[:, 1] / greatest, greatest).any()
