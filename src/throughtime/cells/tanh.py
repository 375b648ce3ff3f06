"""What the cells share that are tanh of sums: b + U x(t), hoisted out of the loop, and W."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from throughtime.cells.builtin import check_dtype, initialise
from throughtime.cells.cell import Cell
from throughtime.kernels import Recurrence


class TanhCell(Cell):
    """U `weight_ih` (H, I), W `weight_hh` (H, H) and b `bias_ih` (H,); what is done with them is the cell's own.

    `features` is the size of what U is multiplied with, where that is not x itself.
    """

    def __init__(self, input_size: int, hidden_size: int, *, features: int | None = None) -> None:
        super().__init__(input_size, hidden_size)
        self.weight_ih = nn.Parameter(torch.empty(hidden_size, features or input_size))
        self.weight_hh = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.bias_ih = nn.Parameter(torch.empty(hidden_size))

    def reset_parameters(self) -> None:
        """Draw weights and biases anew, uniform in ±1/√H as PyTorch's recurrent cells do."""
        own = [(name, p) for name, p in self.named_parameters(recurse=False) if name.startswith(("weight", "bias"))]
        initialise(own, self.hidden_size)

    def project_inputs(self, inputs: Float[Tensor, "*B I"]) -> Float[Tensor, "*B H"]:
        """b + U x(t), for every step at once."""
        return functional.linear(inputs, self.weight_ih, self.bias_ih)

    def recurrence(self, inputs: Float[Tensor, "T B I"], state: Any = None, **options: Any) -> Recurrence:
        """The cell over the steps of `inputs`, from `state` or zeros.

        Raises:
            ShapeError: inputs or state that do not fit.
        """
        check_dtype(inputs, self.weight_ih, who=type(self).__name__)
        return super().recurrence(inputs, state, **options)
