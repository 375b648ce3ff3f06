"""The plain recurrent cell with skip connections through time.

    h(t) = tanh(b + W h(t-1) + W_d h(t-d) + U x(t))          (10.9.1; 10.8 with a connection of delay d more)

From one step to another τ steps later the gradient passes τ / d connections of delay d instead of τ, so that it
vanishes or explodes that many times more slowly; it still may, as connections of delay 1 remain.
Source: Goodfellow, Bengio & Courville 2016, section 10.9.1; Lin, Horne, Tiňo & Giles 1996.
"""

from __future__ import annotations

import functools
from collections import namedtuple
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from throughtime.cells.tanh import TanhCell
from throughtime.errors import UsageError


@functools.cache
def skip_state(delay: int) -> Any:
    """The type of the state: h (B, H) is h(t), and h_k (B, H), for k from 1 to d - 1, is h(t-k)."""
    return namedtuple("SkipState", ["h", *(f"h_{k}" for k in range(1, delay))])


class SkipCell(TanhCell):
    """h(t) = tanh(b + W h(t-1) + W_d h(t-d) + U x(t)): the state are the last `delay` hidden states.

        >>> import torch, throughtime as tt
        >>> outputs, final = tt.unfold(tt.nn.SkipCell(3, 5, delay=3), torch.zeros(7, 2, 3))
        >>> final._fields, torch.equal(final.h_2, outputs[4])
        (('h', 'h_1', 'h_2'), True)

    W_d is `weight_skip` (H, H). What lies before the first step is zero. The native engine takes delays up to 19.

    Raises:
        UsageError: `delay` is below 2: a delay of one step is the plain cell.
    Source: Goodfellow, Bengio & Courville 2016, section 10.9.1.
    """

    def __init__(self, input_size: int, hidden_size: int, delay: int = 4) -> None:
        if delay < 2:
            raise UsageError(
                f"SkipCell: delay must be at least 2 time steps, got {delay}; a delay of 1 is tt.nn.RNNCell"
            )
        super().__init__(input_size, hidden_size)
        self.delay = delay
        self.weight_skip = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.reset_parameters()

    @property
    def State(self) -> Any:  # depends on the delay
        """The type of this cell's state: h, h_1, ... h_(d-1)."""
        return skip_state(self.delay)

    def step(self, projected: Float[Tensor, "B H"], state: Any) -> Any:
        """One time step from b + U x(t): the oldest state enters and leaves, the others grow older by one step."""
        a = projected + functional.linear(state.h, self.weight_hh) + functional.linear(state[-1], self.weight_skip)
        return self.State(torch.tanh(a), *state[:-1])

    def extra_repr(self) -> str:
        """The sizes and the delay."""
        return f"{self.input_size}, {self.hidden_size}, delay={self.delay}"
