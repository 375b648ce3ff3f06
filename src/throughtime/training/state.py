"""How far a training is: everything the loop decides by, and how a checkpoint holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from throughtime.errors import ConfigError
from throughtime.training.checkpoint import Tensors, model_tensors
from throughtime.training.config import TrainingConfig
from throughtime.training.random_state import random_tensors, restore_random

# What the counters and tensors of a checkpoint depend on, beside the model.
_SETTINGS = ("batches_per_epoch", "batch_size", "window", "optimizer")


@dataclass
class TrainingState:
    """Counters of one training; the same on every process.

    batches_per_epoch, batch_size, window: of the data that `position` counts.
    optimizer: the name of the one whose state goes with the counters.
    step: updates done.
    position: micro-batches done on each process, the number of the next one.
    seconds: time trained, on the main process's clock.
    evaluated_step: the step of the last evaluation, -1 before the first.
    best: the results of the best evaluation; `best_step` is its step.
    stalled: evaluations since the best one.
    plateau: the product of the falls of the learning rate; `plateau_stalled` counts towards the next.
    """

    batches_per_epoch: int
    batch_size: int
    window: int
    optimizer: str
    step: int = 0
    position: int = 0
    seconds: float = 0.0
    evaluated_step: int = -1
    best: dict[str, float] = field(default_factory=dict)
    best_step: int | None = None
    stalled: int = 0
    plateau: float = 1.0
    plateau_stalled: int = 0

    @property
    def epochs(self) -> float:
        """Passes over the data done."""
        return self.position / self.batches_per_epoch

    def finished(self, config: TrainingConfig) -> str | None:
        """Why the training is over, or None while it is not."""
        if config.max_steps and self.step >= config.max_steps:
            return f"max_steps = {config.max_steps} reached"
        if config.max_epochs and self.position >= config.max_epochs * self.batches_per_epoch:
            return f"max_epochs = {config.max_epochs} reached"
        if config.max_minutes and self.seconds >= 60 * config.max_minutes:
            return f"max_minutes = {config.max_minutes:g} reached"
        if config.early_stopping and self.stalled >= config.early_stopping:
            return f"early_stopping: {self.stalled} evaluations without improvement"
        return None

    def evaluation_due(self, config: TrainingConfig) -> bool:
        """Whether an evaluation belongs to this step and has not been made yet."""
        if self.step == 0 or self.evaluated_step == self.step:
            return False
        if config.evaluate_every:
            return self.step % config.evaluate_every == 0
        before = self.position - config.gradient_accumulation
        return self.position // self.batches_per_epoch > before // self.batches_per_epoch

    def take_evaluation(self, results: Mapping[str, float], config: TrainingConfig) -> bool:
        """Note the results of an evaluation at this step; whether they are the best so far."""
        self.evaluated_step = self.step
        if not self.best or results["loss"] < self.best["loss"]:
            self.best, self.best_step = dict(results), self.step
            self.stalled = self.plateau_stalled = 0
            return True
        self.stalled += 1
        self.plateau_stalled += 1
        if self.plateau_stalled >= config.plateau_patience:
            self.plateau *= config.plateau_factor
            self.plateau_stalled = 0
        return False

    def to_json(self) -> dict[str, Any]:
        """The counters as JSON has them."""
        return asdict(self)

    def take_up(self, values: Mapping[str, Any]) -> set[str]:
        """Go on from the counters of a checkpoint; the names of the settings that have changed since it was written.

        The position becomes one in the batches of this run: where their number has changed, the part of the data
        that is done stays.
        """
        changed = {name for name in _SETTINGS if values.get(name) != getattr(self, name)}
        for counter in fields(self):
            if counter.name not in _SETTINGS:
                setattr(self, counter.name, values[counter.name])
        if "batches_per_epoch" in changed:
            self.position = self.position * self.batches_per_epoch // values["batches_per_epoch"]
        return changed


def rank_tensors(carried: tuple[Tensor, ...] | None, device: torch.device) -> Tensors:
    """One process's own part of a checkpoint: its carried state and its random generators."""
    tensors = {f"random.{name}": tensor for name, tensor in random_tensors(device).items()}
    return tensors | {f"carried.{number}": tensor for number, tensor in enumerate(carried or ())}


def load_rank_tensors(tensors: Mapping[str, Tensor], device: torch.device) -> tuple[Tensor, ...] | None:
    """Put the random generators back; the carried state on `device`, None when none was carried."""
    parts = {name.removeprefix("random."): tensor for name, tensor in tensors.items() if name.startswith("random.")}
    restore_random(parts, device)
    count = len(tensors) - len(parts)
    return tuple(tensors[f"carried.{number}"].to(device) for number in range(count)) or None


def load_model_tensors(model: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint's weights into `model`.

    Raises:
        ConfigError: they are those of another model; names the first parameter that differs.
    """
    own = model_tensors(model.state_dict())
    for name in dict.fromkeys([*own, *tensors]):
        here = tuple(own[name].shape) if name in own else "none"
        there = tuple(tensors[name].shape) if name in tensors else "none"
        if here != there:
            raise ConfigError(
                f"model: the checkpoint has {name} of shape {there}, the configuration asks for {here}; "
                "resume with the [model] section that the run was started with"
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
