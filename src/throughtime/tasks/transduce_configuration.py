"""The whole configuration of a run of `throughtime train transduce`: what its `config.toml` holds."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from throughtime.configuration import to_toml
from throughtime.data.pair_config import PairsConfig
from throughtime.decoding.search_config import SearchConfig
from throughtime.models.encoder_decoder_config import EncoderDecoderShape
from throughtime.models.feedback import FeedbackModel
from throughtime.training.config import TrainingConfig
from throughtime.training.inputs import (
    FreeRunning,
    MixedLosses,
    ProfessorForcing,
    ScheduledSampling,
    TeacherForcing,
    TrainingInput,
)

_HEADING = """A throughtime configuration: every key, with its meaning.
Train again with it:  throughtime train transduce --config config.toml --run NEW-FOLDER
Whole pairs are trained on: training.window plays no part."""


class TransduceTraining(TrainingConfig):
    """How an encoder-decoder is trained, and what its decoder sees of its own outputs."""

    batch_size: int = Field(64, ge=1, description="pairs in a batch, on each process, where data.batch_tokens is 0")
    evaluate_sources: int = Field(
        500, ge=0, description="held-out sources that are answered, greedily, at each evaluation; 0: none"
    )
    inputs: Literal["teacher_forcing", "free_running", "mixed_losses", "scheduled_sampling", "professor_forcing"] = (
        Field(
            "teacher_forcing", description="what the decoder reads in training: targets, its own outputs, some of each"
        )
    )
    sampling_decay: Literal["linear", "exponential", "inverse_sigmoid"] = Field(
        "inverse_sigmoid", description="scheduled_sampling: how the share of targets falls"
    )
    sampling_k: float = Field(
        1000.0,
        gt=0,
        description="scheduled_sampling: its constant, in batches (of exponential decay a factor below 1)",
        validate_default=True,
    )

    @field_validator("sampling_k")
    @classmethod
    def _of_its_decay(cls, value: float, info: ValidationInfo) -> float:
        if info.data.get("inputs") != "scheduled_sampling":
            return value
        if info.data.get("sampling_decay") == "exponential":
            if value >= 1:
                raise ValueError("exponential decay needs a factor below 1, such as 0.999")
        elif value < 1:
            raise ValueError("should be at least 1 batch, but for exponential decay")
        return value

    @field_validator("flow_every", "window")
    @classmethod
    def _plays_no_part(cls, value: int, info: ValidationInfo) -> int:
        default = cls.model_fields[str(info.field_name)].default
        if value != default:
            why = "whole pairs are trained on" if info.field_name == "window" else "no flow is measured for pairs"
            raise ValueError(f"{why}: leave it at {default}")
        return value


class TransduceConfiguration(BaseModel):
    """[data], [model], [training] and [generation] of an encoder-decoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: PairsConfig = Field(default_factory=PairsConfig, description="The pairs, and how they become tokens.")
    model: EncoderDecoderShape = Field(default_factory=EncoderDecoderShape, description="The network.")
    training: TransduceTraining = Field(
        default_factory=lambda: TransduceTraining.model_validate({}), description="Training."
    )
    generation: SearchConfig = Field(
        default_factory=SearchConfig, description="How answers are searched when a command does not say."
    )

    @property
    def max_target_length(self) -> int | None:
        """The longest target, in tokens, that the model can write; None where its `stop` sets no limit."""
        return self.model.max_length if self.model.stop == "predicted_length" else None

    def toml(self) -> str:
        """The complete, commented, re-runnable config.toml."""
        return to_toml(self, heading=_HEADING)


def training_input(config: TransduceTraining, model: FeedbackModel) -> TrainingInput:
    """The policy that a configuration names.

    Raises:
        UsageError: its constant is out of range.
    """
    if config.inputs == "scheduled_sampling":
        return ScheduledSampling(config.sampling_decay, config.sampling_k)
    if config.inputs == "professor_forcing":
        return ProfessorForcing(model)
    kinds: dict[str, type[TrainingInput]] = {
        "teacher_forcing": TeacherForcing,
        "free_running": FreeRunning,
        "mixed_losses": MixedLosses,
    }
    return kinds[config.inputs]()
