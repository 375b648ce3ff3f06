"""Batches out of a stream of tokens: contiguous rows to train on, and each token once to evaluate on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from throughtime.data.tokens import TokenFile
from throughtime.errors import DataError
from throughtime.layers import IGNORED

_LEAST_STEPS = 2


class Batch(NamedTuple):
    """T time steps of B rows.

    Attributes:
        inputs: y(t-1).
        targets: y(t); `IGNORED` where a step does not count.
        resets: True where the state before the step is forgotten; None where that is nowhere.
        count: the number of targets that count.
    """

    inputs: Int64[Tensor, "T B"]
    targets: Int64[Tensor, "T B"]
    resets: Bool[Tensor, "T B"] | None
    count: int  # type: ignore[assignment]  # the name hides tuple.count, which nobody calls on a batch


class TokenStreams:
    """A stream cut into `world_size` × `batch_size` contiguous rows of equal length, `window` steps at a time.

    A position in the data is one number, `index`: epoch `index // batches_per_epoch`, and in it the window
    `index % batches_per_epoch` of every row. Row b of a batch goes on where row b of the batch before it ended, so
    that a carried state fits; it is forgotten (`resets`) where a document begins, and at the start of an epoch.
    This rank holds rows `rank * batch_size` and following; what the rows hold depends on
    `world_size * batch_size` alone.

    Each epoch predicts every token but the stream's first, and but `left_out` at its end: what does not fill
    all rows, and a last window of a single step.

    Raises:
        DataError: the text is too short for one window in every row.
    """

    def __init__(self, tokens: TokenFile, batch_size: int, window: int, *, rank: int = 0, world_size: int = 1) -> None:
        rows = batch_size * world_size
        steps = (len(tokens.tokens) - 1) // rows
        if steps < window:
            raise DataError(
                f"data: the text is too short: {rows} rows of one window need {rows * window + 1} tokens, got "
                f"{len(tokens.tokens)}; lower training.batch_size ({batch_size}) or training.window ({window}), "
                "or give more text"
            )
        if steps % window < _LEAST_STEPS:
            steps -= steps % window
        self.window = window
        self.batch_size = batch_size
        self.steps = steps
        self.batches_per_epoch = -(-steps // window)
        self.tokens_per_epoch = steps * rows
        self.left_out = len(tokens.tokens) - 1 - steps * rows
        self._tokens = tokens.tokens
        self._border = tokens.border_id
        self._row_stride = (len(tokens.tokens) - 1) // rows
        self._first_row = rank * batch_size

    def batch(self, index: int) -> Batch:
        """The batch at a position, which is any number from 0 on."""
        start = index % self.batches_per_epoch * self.window
        steps = min(self.window, self.steps - start)
        block = np.empty((self.batch_size, steps + 1), self._tokens.dtype)
        for row in range(self.batch_size):
            at = (self._first_row + row) * self._row_stride + start
            block[row] = self._tokens[at : at + steps + 1]
        inputs = _time_major(block[:, :-1])  # (T, B)
        targets = _time_major(block[:, 1:])  # (T, B)
        resets = inputs == self._border  # (T, B)
        if start == 0:
            resets[0] = True
        return Batch(inputs, targets, resets if resets.any() else None, targets.numel())


class EvaluationStreams:
    """A stream in which every token but the first is predicted exactly once, over all rows and ranks.

    It is cut into `world_size` × `batch_size` contiguous rows. Each row reads up to `context_windows` windows of the
    tokens before it, so that its state is warm; their targets do not count (`IGNORED`), nor does the filling behind the
    last token. With one row in all there is nothing to warm up, and the result is exact.
    """

    def __init__(
        self,
        tokens: TokenFile,
        batch_size: int,
        window: int,
        *,
        context_windows: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        rows = batch_size * world_size
        self.predicted = len(tokens.tokens) - 1
        self.window = window
        self.batch_size = batch_size
        self._tokens = tokens.tokens
        self._border = tokens.border_id
        self._share = -(-self.predicted // rows)
        self._context = context_windows * window if rows > 1 else 0
        self._first_row = rank * batch_size

    def __len__(self) -> int:
        """The number of batches, the same on every rank."""
        return -(-(self._context + self._share) // self.window)

    def __iter__(self) -> Iterator[Batch]:
        return (self.batch(index) for index in range(len(self)))

    def batch(self, index: int) -> Batch:
        """One window of every row; the state is carried from the batch before."""
        start = index * self.window
        steps = min(self.window, self._context + self._share - start)
        inputs = np.full((self.batch_size, steps), self._border, np.int64)
        targets = np.full((self.batch_size, steps), IGNORED, np.int64)
        resets = np.zeros((self.batch_size, steps), np.bool_)
        for row in range(self.batch_size):
            first = (self._first_row + row) * self._share  # the row's own first input
            last = min(first + self._share, self.predicted)
            at = first - self._context + start
            low, high = max(at, 0), min(at + steps, last)
            if low >= high:
                continue
            text = self._tokens[low : high + 1].astype(np.int64)
            inputs[row, low - at : high - at] = text[:-1]
            resets[row, low - at : high - at] = text[:-1] == self._border
            counts = max(first, low)
            if counts < high:
                targets[row, counts - at : high - at] = text[1 + counts - low :]
        if index == 0:
            resets[:, 0] = True
        count = int((targets != IGNORED).sum())
        tensor = _time_major(resets) if resets.any() else None
        return Batch(_time_major(inputs), _time_major(targets), tensor, count)


def _time_major(block: npt.NDArray[Any]) -> Tensor:
    kind = block.dtype if block.dtype == np.bool_ else np.int64
    return torch.from_numpy(np.ascontiguousarray(block.T, dtype=kind))  # (T, B)
