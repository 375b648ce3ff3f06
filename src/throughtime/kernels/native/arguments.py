"""What the native recurrence is called with."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

# Multiplications of one step's W h(t-1), all rows and gates, below which waiting for each other costs threads more than
# they bring: between an RNN of 128 units at batch 1 and a GRU of 128 (docs/log.md).
_SMALL = 40_000
# How many arguments stand before the tensors.
_PLAIN = 3


class Arguments(NamedTuple):
    """The operator's arguments in its order.

    T steps, B sequences, I inputs, H units, P the size of h (H without a projection), G gates.
    """

    cell: str  # "rnn_tanh", "rnn_relu", "lstm", "lstm_projected", "gru", or "gru_before" (reset before the product)
    precision: str  # what operands of products are rounded to: "float32", "float64" or "bfloat16"
    reverse: bool
    inputs: Tensor  # (T, B, I)
    weight_ih: Tensor  # (G · H, I)
    weight_hh: Tensor  # (G · H, P)
    weight_hr: Tensor | None  # (P, H)
    bias_ih: Tensor | None  # (G · H)
    bias_hh: Tensor | None  # (G · H)
    weight_peephole: Tensor | None  # (3, H)
    h_first: Tensor  # (B, P)
    c_first: Tensor | None  # (B, H)
    lengths: Tensor | None  # (B), int64
    resets: Tensor | None  # (T, B), bool
    recurrent_mask: Tensor | None  # (B, P)
    zoneout_h: Tensor | None  # (T, B, P)
    zoneout_c: Tensor | None  # (T, B, H)

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """T, B, I, H, P."""
        steps, batch, inputs = self.inputs.shape
        state = self.weight_hh.shape[1]
        return steps, batch, inputs, state if self.weight_hr is None else self.weight_hr.shape[1], state

    @property
    def saved_values(self) -> int:
        """S: how many values are saved for each unit and step."""
        return {"rnn_tanh": 1, "rnn_relu": 1, "lstm_projected": 5}.get(self.cell, 4)

    def contiguous(self) -> dict[str, Tensor]:
        """The tensors by name, without those that are None, each in one piece."""
        tensors: Any = self[_PLAIN:]
        pairs = zip(TENSORS, tensors, strict=True)
        return {name: value.contiguous() for name, value in pairs if value is not None}

    @property
    def is_small(self) -> bool:
        """Whether one thread is enough."""
        return self.inputs.shape[1] * self.weight_hh.numel() < _SMALL


# The names of those that are tensors, if they are there.
TENSORS = Arguments._fields[_PLAIN:]
