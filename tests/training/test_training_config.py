from __future__ import annotations

import pytest
from pydantic import BaseModel

from throughtime.configuration import to_toml, validate
from throughtime.errors import ConfigError
from throughtime.training.config import DEFAULT_EPOCHS, TrainingConfig


class Whole(BaseModel):
    training: TrainingConfig


def test_without_a_limit_it_is_ten_epochs_and_another_limit_stands_alone() -> None:
    assert TrainingConfig().max_epochs == DEFAULT_EPOCHS
    assert TrainingConfig(max_steps=5).max_epochs == 0
    assert TrainingConfig(max_minutes=0.5).max_epochs == 0


def test_faults_are_told_together() -> None:
    with pytest.raises(
        ConfigError,
        match=r"config.toml: 3 faults: .*batch_size: should be greater than or equal to 1, got -1; "
        r".*schedule: should be 'cosine', 'plateau' or 'constant', got 'cosin'; "
        r".*learning_rat: unknown key, did you mean learning_rate\?",
    ):
        validate(
            Whole,
            {"training": {"batch_size": -1, "schedule": "cosin", "learning_rat": 1, "max_steps": 3}},
            where="config.toml",
        )


def test_no_limit_at_all_is_a_fault() -> None:
    with pytest.raises(ConfigError, match="nothing ends the training: set one of max_steps, max_epochs, max_minutes"):
        validate(Whole, {"training": {"max_epochs": 0}}, where="config.toml")


def test_every_key_is_described_and_written() -> None:
    text = to_toml(Whole(training=TrainingConfig()), heading="")
    for name, field in TrainingConfig.model_fields.items():
        assert field.description
        assert f"\n{name} = " in text
