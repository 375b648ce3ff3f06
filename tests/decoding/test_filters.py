"""Each filter against its definition, token by token."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from throughtime.decoding.filters import (
    Filters,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_repetition,
    scale_by_temperature,
)
from throughtime.errors import ConfigError

rows = st.lists(st.floats(-20, 20), min_size=1, max_size=12)


def kept(logits: torch.Tensor) -> set[int]:
    return {index for index, value in enumerate(logits[0].tolist()) if value > -math.inf}


def tensor(row: list[float]) -> torch.Tensor:
    return torch.tensor([row], dtype=torch.float64)


@given(rows, st.integers(0, 15))
def test_top_k_keeps_the_tokens_with_fewer_than_k_likelier_ones(row: list[float], k: int) -> None:
    expected = {i for i, x in enumerate(row) if k == 0 or sum(y > x for y in row) < k}
    assert kept(keep_top_k(tensor(row), k)) == expected


@given(rows, st.floats(0, 1))
def test_top_p_keeps_the_smallest_nucleus(row: list[float], p: float) -> None:
    probabilities = tensor(row).softmax(-1)[0].tolist()
    order = sorted(range(len(row)), key=lambda i: -row[i])
    expected, total = {order[0]}, probabilities[order[0]]
    for index in order[1:]:
        if total >= p:
            break
        expected.add(index)
        total += probabilities[index]
    found = kept(keep_top_p(tensor(row), p))
    # A sum of floats may fall on either side of p; then one token more or less is as right.
    assert found == expected or (p < 1 and abs(sum(probabilities[i] for i in found & expected) - p) < 1e-12) or p >= 1


@pytest.mark.parametrize(
    ("p", "expected"), [(0.0, {1}), (0.5, {1}), (0.51, {1, 2}), (0.75, {1, 2}), (0.76, {0, 1, 2}), (1.0, {0, 1, 2, 3})]
)
def test_top_p_at_its_edges(p: float, expected: set[int]) -> None:
    logits = torch.tensor([[0.125, 0.5, 0.25, 0.125]], dtype=torch.float64).log()
    assert kept(keep_top_p(logits, p)) == expected


def test_top_p_keeps_one_token_of_a_certain_distribution() -> None:
    assert kept(keep_top_p(tensor([1000.0, 0.0, 0.0]), 0.999)) == {0}


@given(rows, st.floats(0.001, 1))
def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest(row: list[float], fraction: float) -> None:
    probabilities = tensor(row).softmax(-1)[0].tolist()
    found = kept(keep_min_p(tensor(row), fraction))
    for index, probability in enumerate(probabilities):
        ratio = probability / max(probabilities)
        if abs(ratio - fraction) > 1e-9:
            assert (index in found) == (ratio > fraction)


def test_the_filters_that_are_off_change_nothing() -> None:
    logits = tensor([1.0, 2.0, -3.0])
    assert torch.equal(keep_top_k(logits, 0), logits)
    assert torch.equal(keep_top_p(logits, 1.0), logits)
    assert torch.equal(keep_min_p(logits, 0.0), logits)
    assert torch.equal(Filters().apply(logits), logits)


@given(rows, st.floats(0.1, 10))
def test_temperature_is_the_power_of_the_probabilities(row: list[float], temperature: float) -> None:
    power = tensor(row).softmax(-1) ** (1 / temperature)
    scaled = scale_by_temperature(tensor(row), temperature).softmax(-1)
    torch.testing.assert_close(scaled, power / power.sum())


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 5e-324])
def test_at_no_temperature_only_the_likeliest_stays(temperature: float) -> None:
    probabilities = Filters(temperature=temperature).apply(torch.tensor([[1.0, 80.0, -3.0]])).softmax(-1)
    assert probabilities.tolist() == [[0.0, 1.0, 0.0]]


def test_at_temperature_zero_the_first_of_equals_stays() -> None:
    assert kept(scale_by_temperature(tensor([1.0, 2.0, 2.0]), 0.0)) == {1}


@given(rows, st.floats(1, 3), st.data())
def test_a_penalty_makes_seen_tokens_less_likely_and_no_others(
    row: list[float], penalty: float, data: st.DataObject
) -> None:
    seen = data.draw(st.lists(st.booleans(), min_size=len(row), max_size=len(row)))
    result = penalise_repetition(tensor(row), torch.tensor([seen]), penalty)[0].tolist()
    for before, after, was_seen in zip(row, result, seen, strict=True):
        assert after == ((before / penalty if before > 0 else before * penalty) if was_seen else before)
        assert after <= before


def test_the_order_is_penalty_temperature_top_k_top_p_min_p() -> None:
    logits = tensor([3.0, 2.0, 1.5, 0.5, -1.0])
    seen = torch.tensor([[True, False, False, False, True]])
    step = penalise_repetition(logits, seen, 1.3)
    step = keep_min_p(keep_top_p(keep_top_k(scale_by_temperature(step, 0.7), 4), 0.9), 0.1)
    assert torch.equal(Filters(0.7, 4, 0.9, 0.1, 1.3).apply(logits, seen), step)


@given(rows, st.floats(0, 3), st.integers(0, 5), st.floats(0, 1), st.floats(0, 1))
def test_the_likeliest_token_always_stays(row: list[float], t: float, k: int, p: float, fraction: float) -> None:
    allowed = Filters(t, k, p, fraction).apply(tensor(row))
    assert allowed.argmax(-1).item() == max(range(len(row)), key=lambda i: (row[i], -i))
    assert not allowed.isnan().any()


def test_every_setting_out_of_range_is_told_at_once() -> None:
    with pytest.raises(
        ConfigError,
        match=r"sampling: temperature must be a number >= 0, got -1; top_k must be .*; top_p must be a probability in "
        r"0\.\.1 \(1: off\), got 1\.5; min_p must be .* got nan; repetition_penalty must be a number > 0 .*, got 0",
    ):
        Filters(temperature=-1, top_k=-2, top_p=1.5, min_p=math.nan, repetition_penalty=0)
