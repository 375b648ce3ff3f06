from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from throughtime.training.config import TrainingConfig
from throughtime.training.schedule import learning_rate_factor, progress

kinds = st.sampled_from(["cosine", "plateau", "constant"])


@given(kinds, st.integers(0, 500), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_the_factor_stays_in_its_range(kind: str, step: int, done: float, lowest: float, plateau: float) -> None:
    config = TrainingConfig(schedule=kind, warmup_steps=100, minimum_ratio=lowest)  # type: ignore[arg-type]
    factor = learning_rate_factor(config, step=step, progress=done, plateau=plateau)
    assert 0 <= factor <= 1 + 1e-12
    if step >= config.warmup_steps or done >= 0.1:
        assert factor >= lowest - 1e-12


def test_warm_up_rises_evenly_from_near_zero_to_one() -> None:
    config = TrainingConfig(schedule="constant", warmup_steps=4)
    factors = [learning_rate_factor(config, step=step, progress=0.0) for step in range(6)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_warm_up_takes_a_tenth_of_a_short_run_at_most() -> None:
    config = TrainingConfig(schedule="constant", warmup_steps=100)
    short = [learning_rate_factor(config, step=step, progress=step / 40) for step in range(6)]
    assert short == pytest.approx([1 / 101, 0.25, 0.5, 0.75, 1.0, 1.0])
    # A tenth of this one is longer than the warm-up, which is then as if the run had no end.
    long = [learning_rate_factor(config, step=step, progress=step / 1010) for step in range(110)]
    assert long == [learning_rate_factor(config, step=step, progress=0.0) for step in range(110)]


def test_cosine_falls_from_one_to_the_minimum() -> None:
    config = TrainingConfig(schedule="cosine", warmup_steps=0, minimum_ratio=0.1)
    factors = [learning_rate_factor(config, step=9, progress=done) for done in (0, 0.25, 0.5, 1)]
    assert factors == pytest.approx([1, 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2, 0.55, 0.1])


def test_plateau_follows_its_falls_down_to_the_minimum() -> None:
    config = TrainingConfig(schedule="plateau", warmup_steps=0, minimum_ratio=0.1)
    assert learning_rate_factor(config, step=9, progress=0.9, plateau=0.25) == 0.25
    assert learning_rate_factor(config, step=9, progress=0.9, plateau=0.01) == 0.1


def test_progress_is_that_of_the_limit_that_comes_first() -> None:
    config = TrainingConfig(max_steps=100, max_epochs=2, max_minutes=10)
    assert progress(config, step=10, epochs=0.1, minutes=6) == pytest.approx(0.6)
    assert progress(config, step=90, epochs=0.1, minutes=6) == pytest.approx(0.9)
    assert progress(config, step=200, epochs=0, minutes=0) == 1.0
