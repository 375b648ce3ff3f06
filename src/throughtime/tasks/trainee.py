"""What is trained: a model together with the policy that says what it sees of its own outputs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from throughtime.models import Model
from throughtime.training.inputs import TrainingInput


class Trainee(nn.Module):
    """A model and the policy of its training as one module, so that both are trained, wrapped and saved together."""

    def __init__(self, model: Model, policy: TrainingInput) -> None:
        super().__init__()
        # Checkpoints hold its parameters by this name.
        self.design = model
        self.policy = policy

    def forward(self, batch: Any, index: int) -> Tensor:
        """The policy's loss of batch number `index`."""
        loss: Tensor = self.policy(self.design, batch, index)
        return loss
