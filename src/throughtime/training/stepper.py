"""One step of training: micro-batches, their gradients as one mean, clipping, the update."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from throughtime.training.config import TrainingConfig
from throughtime.training.distributed import Distribution
from throughtime.training.optimizer import make_optimizer
from throughtime.training.task import Task

_NEVER = 2**62


@dataclass(frozen=True, slots=True)
class Gradients:
    """What the backward passes of one step left on the parameters.

    total: the loss summed over this process's targets, in nats.
    count: the number of targets of this process.
    """

    total: Float[Tensor, ""]
    count: int


class Stepper:
    """Turns micro-batches into updates of the model, and carries the state from one to the next.

    Gradients are those of Σ L / N, with L and the number of targets N over all micro-batches of the step and all
    processes, so that neither the cutting into micro-batches nor the number of processes changes the step.
    """

    def __init__(self, task: Task, model: nn.Module, config: TrainingConfig, distribution: Distribution) -> None:
        self.carried: tuple[Tensor, ...] | None = None
        self.optimizer = make_optimizer(task.model, config)
        self._task = task
        self._model = model
        self._config = config
        self._distribution = distribution
        self._parameters = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
        self._first_bad = torch.full((), _NEVER, dtype=torch.int64, device=distribution.device)

    def backward(self, position: int) -> Gradients:
        """Forward and backward through the step's micro-batches, the first being number `position`."""
        last = position + self._config.gradient_accumulation - 1
        total: Tensor | None = None
        count = 0
        for index in range(position, last + 1):
            batch = self._distribution.place(self._task.batch(index))
            averaging = contextlib.nullcontext() if index == last else self._without_averaging()
            with averaging:
                loss = self._task.loss(self._model, batch, self.carried)
                torch.autograd.backward(loss.total)
            self.carried = loss.carried
            total = loss.total.detach() if total is None else total + loss.total.detach()
            count += loss.count
        assert total is not None
        return Gradients(total, count)

    def update(self, step: int, count: int, factor: float) -> Float[Tensor, ""]:
        """Step number `step`: move the parameters along the gradient over `count` targets of all processes.

        The learning rate is the highest one times `factor`. Returns the gradient's norm before clipping.
        """
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        # Losses are summed and the processes' gradients averaged: this makes the mean over targets of both.
        mean = self._distribution.world_size / max(count, 1)
        norm = torch.nn.utils.get_total_norm(gradients) * mean
        clip = self._config.gradient_clip
        scale = torch.clamp(clip / (norm + 1e-6), max=1.0) * mean if clip else torch.full_like(norm, mean)
        torch._foreach_mul_(gradients, scale)
        if limit := self._config.gradient_clip_value:
            torch._foreach_clamp_max_(gradients, limit)
            torch._foreach_clamp_min_(gradients, -limit)
        for group in self.optimizer.param_groups:
            group["lr"] = self._config.learning_rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        # Kept on the device: reading it would wait for the device at every step.
        self._first_bad = torch.where(norm.isfinite(), self._first_bad, self._first_bad.clamp(max=step))
        return norm

    def first_bad_step(self) -> int | None:
        """The first step whose gradient was not finite, or None; waits for the device.

        The gradient is the same on every process, and so is this.
        """
        step = int(self._first_bad)
        return None if step == _NEVER else step

    def _without_averaging(self) -> contextlib.AbstractContextManager[object]:
        return self._distribution.without_averaging(self._model)
