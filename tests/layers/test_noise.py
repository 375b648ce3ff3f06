"""Masks: their shares, their scale, and when they are drawn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from throughtime.errors import UsageError
from throughtime.layers import LockedDropout, checked_probability, locked_mask, zoneout_masks


@given(st.floats(0, 0.99, allow_subnormal=False), st.integers(0, 99))
def test_a_mask_drops_its_share_and_scales_the_rest(probability: float, seed: int) -> None:
    torch.manual_seed(seed)
    mask = locked_mask(torch.zeros(1, dtype=torch.float64), (4000,), probability)
    dropped = float((mask == 0).double().mean())
    assert abs(dropped - probability) <= 6 * (probability * (1 - probability) / 4000) ** 0.5
    torch.testing.assert_close(mask[mask != 0], torch.full_like(mask[mask != 0], 1 / (1 - probability)))


def test_a_mask_is_of_its_examples_type() -> None:
    assert locked_mask(torch.zeros(1, dtype=torch.bfloat16), (3, 2), 0.5).dtype == torch.bfloat16


def test_zoneout_shares_in_training_and_evaluation() -> None:
    like = torch.zeros(50, 4, 3)
    training = zoneout_masks(like, (20, 10), (0.25, 0.0), True)
    assert training[1] is None
    assert training[0].shape == (50, 4, 20)
    assert abs(float(training[0].mean()) - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5
    (mean,) = zoneout_masks(like, (20,), (0.25,), False)
    assert mean.shape == (50, 4, 20)
    assert (mean == 0.25).all()


def test_locked_dropout_drops_the_same_units_at_every_step() -> None:
    layer = LockedDropout(0.5)
    outputs = layer(torch.ones(6, 3, 40))
    assert all(torch.equal(step, outputs[0]) for step in outputs)
    assert not torch.equal(outputs[0, 0], outputs[0, 1])
    assert set(outputs.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(layer(torch.ones(6, 3, 40)), outputs)
    inputs = torch.ones(6, 3, 40)
    assert layer.eval()(inputs) is inputs
    assert LockedDropout(0.0)(inputs) is inputs
    assert repr(LockedDropout(0.25)) == "LockedDropout(0.25)"


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("value", [-0.1, 1, 1.5, float("nan"), "half", None])
def test_what_is_no_probability(value: object) -> None:
    with pytest.raises(UsageError, match=r"Thing: rate must be a probability in \[0, 1\), got "):
        checked_probability(value, who="Thing", name="rate")
