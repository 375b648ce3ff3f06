"""What the training loop knows of a task: batches by number, a summed loss, an evaluation, a way to save."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Loss:
    """What one micro-batch gave.

    total: L = Σ -log p over the micro-batch's targets, in nats, with its graph.
    count: the number of those targets.
    carried: the state at the last step, detached and flattened, handed to the next micro-batch; None where the
        task carries nothing.
    """

    total: Float[Tensor, ""]
    count: int
    carried: tuple[Tensor, ...] | None


class Task(Protocol):
    """A model with its data. The loop needs nothing else of it.

    name: what `throughtime train` calls it, for example "lm".
    model: the module to train; its parameters are final before the loop begins.
    batches_per_epoch: micro-batches in one pass over this rank's part of the data; the same on every rank.
    """

    name: str
    model: nn.Module
    batches_per_epoch: int

    def batch(self, index: int) -> Any:
        """Micro-batch `index` of this rank, counted from the beginning of training, epochs included.

        A pure function of `index`: the position in the data is one number, so resuming is exact.
        """
        ...

    def loss(self, model: nn.Module, batch: Any, carried: tuple[Tensor, ...] | None) -> Loss:
        """The loss of one micro-batch; `model` is the task's own, or what distribution wrapped around it.

        It must be used by calling `model(...)`: another method would bypass the wrapper's gradient averaging.
        """
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Results on held-out data, the same on every rank: "loss" in nats per target, and any others."""
        ...

    def describe(self, loss: float) -> dict[str, float]:
        """Other units of a loss in nats per target, to show beside it, for example {"bits_per_byte": ...}."""
        ...

    def save_model(self, folder: Path) -> None:
        """Write the model as users load it: model.safetensors, config.json and what else it needs."""
        ...


@runtime_checkable
class MeasuresFlow(Protocol):
    """What a task has besides where it can tell how gradients flow back through time (`training.flow_every`)."""

    def flow(self, batch: Any, carried: tuple[Tensor, ...] | None) -> dict[str, float]:
        """Numbers by name for the log, from the model as it is and a micro-batch; neither draws nor changes anything.

        `batch` is on the model's device, `carried` the state before it.
        """
        ...
