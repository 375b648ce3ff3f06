"""The configuration of a run of pairs: what it refuses before anything is done."""

from __future__ import annotations

import pytest

from throughtime.configuration import validate
from throughtime.errors import ConfigError
from throughtime.tasks.transduce_configuration import TransduceConfiguration, TransduceTraining


@pytest.mark.parametrize(
    ("training", "told"),
    [
        ({"flow_every": 5}, "flow_every: no flow is measured for pairs: leave it at 0, got 5"),
        ({"window": 64}, "window: whole pairs are trained on: leave it at 128, got 64"),
        (
            {"inputs": "scheduled_sampling", "sampling_decay": "exponential"},
            "sampling_k: exponential decay needs a factor below 1, such as 0.999, got 1000.0",
        ),
        (
            {"inputs": "scheduled_sampling", "sampling_k": 0.5},
            "sampling_k: should be at least 1 batch, but for exponential decay, got 0.5",
        ),
    ],
)
def test_what_cannot_be_trained_by_is_refused(training: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=f"^own.toml: 1 fault: training.{told}$"):
        validate(TransduceConfiguration, {"training": training}, where="own.toml")


def test_the_constant_of_scheduled_sampling_fits_its_decay() -> None:
    decays = {"inputs": "scheduled_sampling", "sampling_decay": "exponential", "sampling_k": 0.9}
    assert TransduceTraining.model_validate(decays).sampling_k == 0.9
    # Where nothing is sampled it plays no part.
    assert TransduceTraining.model_validate({"sampling_decay": "exponential"}).sampling_k == 1000.0


def test_only_predicted_lengths_limit_a_target() -> None:
    for stop, limit in (("predicted_length", 7), ("end_symbol", None), ("bernoulli_halt", None)):
        model = {"stop": stop, "max_length": 7}
        assert validate(TransduceConfiguration, {"model": model}, where="own.toml").max_target_length == limit
