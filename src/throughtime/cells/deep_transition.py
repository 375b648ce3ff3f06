"""The recurrent cell whose transition is a deep network.

    x_0(t) = x(t);   x_k(t) = tanh(d_k + V_k x_{k-1}(t)),  k = 1 .. n        deep input-to-hidden, n = `input_depth`
    z_1(t) = tanh(b_1 + W_1 h(t-1) + U x_n(t))
    z_k(t) = tanh(b_k + W_k z_{k-1}(t)),  k = 2 .. m                         deep hidden-to-hidden, m = `depth`
    h(t) = z_m(t)                                                            (fig. 10.13b)
    h(t) = tanh(b_m + W_m z_{m-1}(t) + W_s h(t-1)) instead, with `skip`      (fig. 10.13c)

The layers over each other of fig. 10.13a are `num_layers` of any layer, or `tt.nn.CellStack`. Of the three blocks that
fig. 10.13b makes deep, the two that lead to h belong to this cell, and the one from h(t) to o(t) to the readout: it
does not recur, and is a network of one's own between h and `Readout`.

The deeper transition makes the shortest path from h(t-1) to h(t) m times as long; W_s shortens it to one again.
Source: Goodfellow, Bengio & Courville 2016, section 10.5; Pascanu, Gulcehre, Cho & Bengio 2014.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from throughtime.cells.rnn import RNNState
from throughtime.cells.tanh import TanhCell
from throughtime.errors import UsageError


class DeepTransitionCell(TanhCell):
    """h(t) by a network of `depth` layers of h(t-1) and x(t).

        >>> import torch, throughtime as tt
        >>> cell = tt.nn.DeepTransitionCell(3, 5, depth=3, skip=True, input_depth=1)
        >>> tt.unfold(cell, torch.zeros(7, 2, 3))[0].shape
        torch.Size([7, 2, 5])

    U is `weight_ih`, W_1 `weight_hh`, b_1 `bias_ih`; W_2 .. W_m stand in `weight_deep` (m - 1, H, H), their biases in
    `bias_deep` (m - 1, H), W_s in `weight_skip` (H, H), and V_k, d_k in `input_layers`, computed for all time steps at
    once.

    Args:
        input_size: the size I of x(t).
        hidden_size: the number H of units of every layer.
        depth: layers from h(t-1) to h(t), at least 2.
        skip: h(t-1) enters the last of them directly as well.
        input_depth: hidden layers that x(t) passes before it meets h(t-1).

    Raises:
        UsageError: `depth` is below 2, which is the plain cell, or `input_depth` is below 0.
    Source: Goodfellow, Bengio & Courville 2016, fig. 10.13.
    """

    State = RNNState

    def __init__(
        self, input_size: int, hidden_size: int, depth: int = 2, *, skip: bool = False, input_depth: int = 0
    ) -> None:
        if depth < 2:
            raise UsageError(f"DeepTransitionCell: depth must be at least 2, got {depth}; one layer is tt.nn.RNNCell")
        if input_depth < 0:
            raise UsageError(f"DeepTransitionCell: input_depth must be 0 (none) or more, got {input_depth}")
        super().__init__(input_size, hidden_size, features=hidden_size if input_depth else input_size)
        self.depth = depth
        self.skip = skip
        self.input_depth = input_depth
        sizes = [input_size] + [hidden_size] * input_depth
        layers = [[nn.Linear(sizes[k], hidden_size), nn.Tanh()] for k in range(input_depth)]
        self.input_layers = nn.Sequential(*(part for layer in layers for part in layer))
        self.weight_deep = nn.Parameter(torch.empty(depth - 1, hidden_size, hidden_size))
        self.bias_deep = nn.Parameter(torch.empty(depth - 1, hidden_size))
        self.weight_skip = nn.Parameter(torch.empty(hidden_size, hidden_size)) if skip else None
        self.reset_parameters()

    def project_inputs(self, inputs: Float[Tensor, "*B I"]) -> Float[Tensor, "*B H"]:
        """b_1 + U x_n(t), for every step at once."""
        return super().project_inputs(self.input_layers(inputs))

    def step(self, projected: Float[Tensor, "B H"], state: RNNState) -> RNNState:
        """One time step from b_1 + U x_n(t)."""
        a = projected + functional.linear(state.h, self.weight_hh)  # (B, H)
        for k in range(self.depth - 1):
            a = functional.linear(torch.tanh(a), self.weight_deep[k], self.bias_deep[k])
        if self.weight_skip is not None:
            a = a + functional.linear(state.h, self.weight_skip)
        return RNNState(torch.tanh(a))

    def extra_repr(self) -> str:
        """The sizes and the depths."""
        parts = f"{self.input_size}, {self.hidden_size}, depth={self.depth}"
        parts += ", skip=True" if self.skip else ""
        return parts + (f", input_depth={self.input_depth}" if self.input_depth else "")
