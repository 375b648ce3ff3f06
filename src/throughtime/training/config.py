"""The section [training] of a configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from throughtime.configuration import Section

DEFAULT_EPOCHS = 10
_LIMITS = ("max_steps", "max_epochs", "max_minutes")


class TrainingConfig(Section):
    """How a model is trained: lengths, learning rate, limits, evaluation, checkpoints, devices.

    Of the three limits the one reached first ends the training; when none is given it is 10 epochs.
    """

    batch_size: int = Field(32, ge=1, description="sequences side by side in a micro-batch, on each process")
    window: int = Field(128, ge=1, description="truncated BPTT: gradients flow back this many time steps")
    gradient_accumulation: int = Field(1, ge=1, description="micro-batches summed into one step")

    max_steps: int = Field(0, ge=0, description="end after this many steps; 0: no such limit")
    max_epochs: int = Field(0, ge=0, description="end after this many passes over the data; 0: no such limit")
    max_minutes: float = Field(
        0.0,
        ge=0,
        description="end after this many minutes of training, resumed ones included; 0: no such limit. "
        "The schedule then follows the clock, so that two runs are not bit-identical",
    )

    optimizer: Literal["adamw", "sgd"] = Field(
        "adamw",
        description="adamw, or plain stochastic gradient descent, which words of a small text may like better "
        "(learning_rate about 20, gradient_clip 0.25)",
    )
    learning_rate: float = Field(2e-3, gt=0, description="highest learning rate, for the mean loss per token")
    weight_decay: float = Field(
        0.01,
        ge=0,
        description="decay of weight matrices, times the learning rate at each step (sgd: about 1e-6); "
        "biases, norms, embeddings: 0",
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW: decay of the gradient's running mean, per step")
    beta2: float = Field(0.99, ge=0, lt=1, description="AdamW: decay of the squared gradient's running mean, per step")
    gradient_clip: float = Field(1.0, ge=0, description="largest norm of the gradient; longer ones are scaled; 0: off")
    gradient_clip_value: float = Field(
        0.0, ge=0, description="largest entry of the gradient, in size; after gradient_clip; 0: off"
    )
    schedule: Literal["cosine", "plateau", "constant"] = Field(
        "cosine",
        description="learning rate after the warm-up: cosine, plateau (falls when evaluation stalls), constant",
    )
    warmup_steps: int = Field(
        100, ge=0, description="steps over which the learning rate rises from 0; at most a tenth of the run"
    )
    minimum_ratio: float = Field(0.05, ge=0, le=1, description="lowest learning rate, as a part of the highest")
    plateau_factor: float = Field(0.5, gt=0, lt=1, description="plateau: the learning rate is multiplied by this")
    plateau_patience: int = Field(1, ge=1, description="plateau: evaluations without improvement before it falls")

    evaluate_every: int = Field(0, ge=0, description="steps between evaluations; 0: once per epoch")
    early_stopping: int = Field(0, ge=0, description="end after this many evaluations without improvement; 0: off")
    checkpoint_every: int = Field(500, ge=0, description="steps between checkpoints; 0: only the best and the last")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints kept, besides the best")
    log_every: int = Field(20, ge=1, description="steps between lines of metrics.jsonl")
    flow_every: int = Field(
        0, ge=0, description="steps between measurements of how gradients flow back through time; 0: never"
    )
    tensorboard: bool = Field(False, description="also write TensorBoard's event files into the run folder")

    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="arithmetic of the model: fp32, bf16 (weights stay fp32), auto: bf16 where hardware has it",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one, else cpu")
    seed: int = Field(0, ge=0, lt=2**31, description="of the initial weights, dropout and all else that is drawn")

    @model_validator(mode="before")
    @classmethod
    def _default_limit(cls, values: Any) -> Any:
        # A default on the field itself would also end runs whose user gave another limit.
        if isinstance(values, dict) and not any(name in values for name in _LIMITS):
            return {**values, "max_epochs": DEFAULT_EPOCHS}
        return values

    @model_validator(mode="after")
    def _some_limit(self) -> TrainingConfig:
        if not (self.max_steps or self.max_epochs or self.max_minutes):
            raise ValueError("nothing ends the training: set one of max_steps, max_epochs, max_minutes above 0")
        return self
