"""What a derivation found, to be looked at: each step's gradients, their sums, and a table of their norms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

_SHOWN = 24  # rows of the table; of longer sequences the first and the last steps are shown


class Contributions(NamedTuple):
    """∇_U (G · H, I), ∇_W (G · H, H), ∇_b (G · H,), ∇_V (O, H), ∇_c (O,): of one step's copies, or of all together."""

    U: Tensor
    W: Tensor
    b: Tensor
    V: Tensor
    c: Tensor


@dataclass(frozen=True, repr=False)
class Derivation:
    """The gradient of L = Σ_t L(t), summed over a batch, with all that it was made of. Printed, it is a table.

    Attributes:
        title: which network, and its sizes.
        loss: L in nats, a scalar.
        steps: one `RNNStep` or `LSTMStep` for each t: `steps[0]` is t = 1, `steps[-1]` is t = τ.
        sums: ∇_U L and the others, each the sum of all steps' contributions.
        nabla_start: the gradient of the state before the first step, one tensor (B, H) a field.
        columns: for the table, the heading, the equation and the field of a step.
        bias: whether the cell has biases.
    """

    title: str
    loss: Tensor
    steps: tuple[Any, ...]
    sums: Contributions
    nabla_start: tuple[Tensor, ...]
    columns: Sequence[tuple[str, str, str]]
    bias: bool

    @property
    def gradients(self) -> Mapping[str, Tensor]:
        """The sums under PyTorch's names of the parameters. Both biases have the gradient of their sum b."""
        U, W, b, V, c = self.sums
        biases = {"bias_ih": b, "bias_hh": b} if self.bias else {}
        return {"weight_ih": U, "weight_hh": W, **biases, "weight_ho": V, "bias_ho": c}

    def __repr__(self) -> str:
        names = [name for name in Contributions._fields if self.bias or name != "b"]
        head = [["t", "L(t)", *(f"‖{heading}‖" for heading, _, _ in self.columns), *(f"‖∇{n}(t)‖" for n in names)]]
        numbers = {"U": "10.28", "W": "10.26", "b": "10.23", "V": "10.24", "c": "10.22"}
        head += [["", "10.13", *(number for _, number, _ in self.columns), *(numbers[n] for n in names)]]
        rows = [
            [str(step.t), _number(step.loss.sum())]
            + [_norm(getattr(step, field)) for _, _, field in self.columns]
            + [_norm(getattr(step.contributions, name)) for name in names]
            for step in reversed(self.steps)
        ]
        if len(rows) > _SHOWN:
            rows = [*rows[: _SHOWN // 2], ["…"] * len(head[0]), *rows[-_SHOWN // 2 :]]
        last = ["sum", _number(self.loss)] + [""] * len(self.columns) + [_norm(getattr(self.sums, n)) for n in names]
        lines = [*head, *rows, last]
        widths = [max(len(line[column]) for line in lines) for column in range(len(last))]
        table = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        return "\n".join([self.title, *(line.rstrip() for line in table)])


def add(contributions: Sequence[Contributions], like: Contributions) -> Contributions:
    """The sum over the steps; zeros shaped as `like` where there is no step."""
    start = Contributions(*(torch.zeros_like(one) for one in like))
    for contribution in contributions:
        start = Contributions(*(a + b for a, b in zip(start, contribution, strict=True)))
    return start


def _norm(values: Tensor) -> str:
    return _number(values.norm())


def _number(value: Tensor) -> str:
    return f"{float(value):.3g}"
