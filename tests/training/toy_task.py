"""A tiny recurrent language model over a fixed stream: the smallest task with a carried state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from throughtime.training.task import Loss

VOCABULARY = 11


class ToyModel(nn.Module):
    def __init__(self, hidden_size: int = 8, dropout: float = 0.2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, hidden_size)
        self.lstm = nn.LSTM(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.readout = nn.Linear(hidden_size, VOCABULARY)
        self.readout.weight = self.embedding.weight

    def forward(self, inputs: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        outputs, state = self.lstm(self.dropout(self.embedding(inputs)), state)
        return self.readout(self.dropout(outputs)), state


class ToyTask:
    """`rows` streams of a noisy cycle; rank r of w processes has the r-th `rows` of w * `rows`."""

    name = "toy"

    def __init__(
        self,
        *,
        rows: int = 4,
        window: int = 6,
        windows: int = 8,
        rank: int = 0,
        world_size: int = 1,
        dropout: float = 0.2,
        sums: Callable[[Sequence[float]], list[float]] = list,
    ) -> None:
        self.model = ToyModel(dropout=dropout)
        self.batches_per_epoch = windows
        self.window = window
        self.evaluations = 0
        self.sums = sums
        generator = torch.Generator().manual_seed(5)
        length = window * windows + 1
        steps = torch.randint(1, 3, (length, rows * world_size), generator=generator).cumsum(0)
        self.stream = (steps % VOCABULARY)[:, rank * rows : (rank + 1) * rows]  # (T + 1, B)

    def batch(self, index: int) -> tuple[Tensor, Tensor, bool]:
        start = index % self.batches_per_epoch * self.window
        part = self.stream[start : start + self.window + 1]
        return part[:-1], part[1:], start == 0

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, bool], carried: tuple[Tensor, ...] | None) -> Loss:
        inputs, targets, fresh = batch
        logits, state = model(inputs, None if fresh else carried)
        total = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        return Loss(total, targets.numel(), tuple(part.detach() for part in state))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        self.evaluations += 1
        torch.rand(3)  # an evaluation may draw; the training must not notice
        logits, _ = model(self.stream[:-1], None)
        targets = self.stream[1:].flatten()
        own = nn.functional.cross_entropy(logits.flatten(0, 1), targets, reduction="sum")
        total, count = self.sums([float(own), targets.numel()])
        return {"loss": total / count, **self.describe(total / count)}

    def describe(self, loss: float) -> dict[str, float]:
        return {"bits_per_byte": loss / math.log(2)}

    def save_model(self, folder: Path) -> None:
        tensors = {name: tensor for name, tensor in self.model.state_dict().items() if name != "readout.weight"}
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text("{}\n")


class RecordedProgress:
    """Keeps what the user would see."""

    def __init__(self) -> None:
        self.updates: list[tuple[float, int, dict[str, float]]] = []
        self.notes: list[str] = []
        self.closed = False

    def update(self, done: float, step: int, values: Mapping[str, float]) -> None:
        self.updates.append((done, step, dict(values)))

    def note(self, message: str) -> None:
        self.notes.append(message)

    def close(self) -> None:
        self.closed = True
