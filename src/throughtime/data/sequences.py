"""Batches of whole sequences for the designs: from tensors that are there, or made as training goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from throughtime.errors import ShapeError, UsageError


@dataclass(frozen=True, eq=False)
class Sequences:
    """N sequences with their targets.

    targets: y(1..τ), (T, N) categories or (T, N, values); with `summary` one y for each sequence, (N,) or (N, values).
    inputs: x(1..τ), (T, N, I) or categories (T, N); None where a design has none.
    context: a vector for each sequence, (N, C), in place of inputs.
    lengths: τ of each sequence (N,); T when missing.

    Raises:
        ShapeError: parts that are not of the same number of sequences, or targets without time.
    """

    targets: Tensor
    inputs: Tensor | None = None
    context: Tensor | None = None
    lengths: Tensor | None = None
    summary: bool = False

    def __post_init__(self) -> None:
        if self.lengths is not None and not isinstance(self.lengths, Tensor):
            raise ShapeError(f"Sequences: lengths must be a tensor (N,), got {type(self.lengths).__name__}")
        if self.inputs is not None and self.context is not None:
            raise ShapeError("Sequences: expected inputs or a context, got both; no design takes both")
        if self.targets.dim() < (1 if self.summary else 2):
            raise ShapeError(
                f"Sequences: targets must be (T, N) or (T, N, values), got {tuple(self.targets.shape)}; "
                "for one target a sequence give summary=True"
            )
        counts = {
            "targets": self.targets.shape[0 if self.summary else 1],
            "inputs": None if self.inputs is None else self.inputs.shape[1],
            "context": None if self.context is None else self.context.shape[0],
            "lengths": None if self.lengths is None else self.lengths.shape[0],
        }
        found = {name: count for name, count in counts.items() if count is not None}
        if len(set(found.values())) > 1:
            raise ShapeError(f"Sequences: expected as many sequences in every part, got {found}; time comes first")

    def __len__(self) -> int:
        """The number of sequences."""
        return self.targets.shape[0 if self.summary else 1]

    @property
    def x(self) -> Tensor | None:
        """What a design is conditioned on: inputs, or the context."""
        return self.context if self.inputs is None else self.inputs

    @property
    def predictions(self) -> int:
        """The number of targets, padding not counted."""
        if self.summary:
            return len(self)
        return len(self.targets) * len(self) if self.lengths is None else int(self.lengths.sum())

    def select(self, rows: Tensor) -> Sequences:
        """The sequences of these numbers, cut to the longest of them."""
        lengths = None if self.lengths is None else self.lengths[rows]
        steps = None if lengths is None else int(lengths.max()) if len(lengths) else 0
        return replace(
            self,
            targets=self.targets[rows] if self.summary else self.targets[:steps, rows],
            inputs=None if self.inputs is None else self.inputs[:steps, rows],
            context=None if self.context is None else self.context[rows],
            lengths=lengths,
        )

    def to(self, device: torch.device) -> Sequences:
        """The same on a device."""
        parts = {name: getattr(self, name) for name in ("targets", "inputs", "context", "lengths")}
        return replace(self, **{name: part.to(device) for name, part in parts.items() if part is not None})


class Source(Protocol):
    """Where training batches come from."""

    batches_per_epoch: int

    def batch(self, index: int) -> Sequences:
        """Batch `index` from the beginning of training: a pure function of it, so that resuming is exact."""
        ...


class TensorSource:
    """Batches of given sequences, in a new order in every epoch; the last of an epoch may be smaller."""

    def __init__(self, sequences: Sequences, batch_size: int, *, seed: int = 0) -> None:
        _check_batch_size(batch_size, who="TensorSource")
        if not len(sequences):
            raise UsageError("TensorSource: expected sequences, got none; give at least one")
        self.sequences = sequences
        self.batch_size = batch_size
        self.seed = seed
        self.batches_per_epoch = -(-len(sequences) // batch_size)
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def batch(self, index: int) -> Sequences:
        """Batch `index`."""
        epoch, place = divmod(index, self.batches_per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self.sequences), generator=generator)
        return self.sequences.select(self._order[place * self.batch_size : (place + 1) * self.batch_size])


class GeneratedSource:
    """Batches made when they are needed: `make(batch_size, generator)`, never the same one twice."""

    def __init__(
        self,
        make: Callable[[int, torch.Generator], Sequences],
        batch_size: int,
        *,
        seed: int = 0,
        batches_per_epoch: int = 1000,
    ) -> None:
        _check_batch_size(batch_size, who="GeneratedSource")
        self.make = make
        self.batch_size = batch_size
        self.seed = seed
        self.batches_per_epoch = batches_per_epoch

    def batch(self, index: int) -> Sequences:
        """Batch `index`."""
        return self.make(self.batch_size, torch.Generator().manual_seed(self.seed * 1_000_003 + 1 + index))


def _check_batch_size(batch_size: int, *, who: str) -> None:
    if batch_size < 1:
        raise UsageError(f"{who}: batch_size must be at least 1 sequence, got {batch_size}")
