"""One time step of each cell and its derivative, on numbers that stand in memory already: for loops written by hand.

A step of any of them begins with one product, a = b + K [x; h(t-1)], K (A, 2H) with a row for each number that the cell
puts through a nonlinearity. A GRU's candidate keeps x and h(t-1) apart, n = tanh(a_nx + r ⊙ a_nh), so that K has four
blocks of rows there, two of them half empty.

Source: Goodfellow, Bengio & Courville 2016, eqs. 10.8-10.9 and 10.40-10.47, in the forms of `throughtime.cells`.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

_tanh_backward = torch.ops.aten.tanh_backward.grad_input
_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input


class StepWeights(NamedTuple):
    """K of [x; h(t-1)], and b: inputs (A, I), recurrent (A, H), bias (A,)."""

    inputs: Tensor
    recurrent: Tensor
    bias: Tensor


class HandCell(Protocol):
    """What a loop written by hand asks of a cell. The state is h(t), and of an LSTM c(t)."""

    fields: int

    def weights(self, weights: Any) -> StepWeights:
        """A layer's weights as K and b, differentiably."""

    def forward(
        self, a: Float[Tensor, "B A"], old: list[Float[Tensor, "B H"]], new: list[Float[Tensor, "B H"]]
    ) -> None:
        """The new state, written into `new`; `a` keeps what `backward` needs."""

    def backward(
        self,
        a: Float[Tensor, "B A"],
        old: list[Float[Tensor, "B H"]],
        new: list[Float[Tensor, "B H"]],
        d_new: list[Float[Tensor, "B H"]],
        d_a: Float[Tensor, "B A"],
    ) -> list[Float[Tensor, "B H"] | None]:
        """dL/da, written into `d_a`, and dL of the old state besides what goes through a; None for nothing."""


class HandLSTM:
    """c' = f ⊙ c + i ⊙ g, h' = o ⊙ tanh(c'); the rows of K are those of i, f, g, o."""

    fields = 2

    def weights(self, weights: Any) -> StepWeights:
        """K and b: the layer's own."""
        return StepWeights(weights.weight_ih, weights.weight_hh, weights.bias_ih + weights.bias_hh)

    def forward(self, a: Tensor, old: list[Tensor], new: list[Tensor]) -> None:
        """The gates take the place of a."""
        i_f, g, o = torch.split(a, [2 * old[0].shape[1], *[old[0].shape[1]] * 2], 1)
        i, f = i_f.sigmoid_().chunk(2, 1)
        torch.mul(f, old[1], out=new[1]).addcmul_(i, g.tanh_())
        torch.tanh(new[1], out=new[0]).mul_(o.sigmoid_())

    def backward(
        self, a: Tensor, old: list[Tensor], new: list[Tensor], d_new: list[Tensor], d_a: Tensor
    ) -> list[Tensor | None]:
        """dL/dc comes from c' and from h' through tanh."""
        i, f, g, o = a.chunk(4, 1)
        d_i, d_f, d_g, d_o = d_a.chunk(4, 1)
        squashed = torch.tanh(new[1])
        torch.mul(d_new[0], squashed, out=d_o)
        d_c = torch.ops.aten.tanh_backward(d_new[0] * o, squashed).add_(d_new[1])
        torch.mul(d_c, g, out=d_i)
        torch.mul(d_c, old[1], out=d_f)
        torch.mul(d_c, i, out=d_g)
        for gate, d_gate in ((i, d_i), (f, d_f), (o, d_o)):
            _sigmoid_backward(d_gate, gate, grad_input=d_gate)
        _tanh_backward(d_g, g, grad_input=d_g)
        return [None, d_c.mul_(f)]


class HandGRU:
    """h' = (1 - z) ⊙ n + z ⊙ h, n = tanh(a_nx + r ⊙ a_nh); the rows of K are those of r, z, n of x, n of h."""

    fields = 1

    def weights(self, weights: Any) -> StepWeights:
        """K and b: rows of n stand twice, each time with zeros for the other half."""
        size = weights.weight_hh.shape[1]
        none_ih = weights.weight_ih.new_zeros(size, weights.weight_ih.shape[1])
        none_hh = weights.weight_hh.new_zeros(size, size)
        gates_bias = (weights.bias_ih + weights.bias_hh)[: 2 * size]
        return StepWeights(
            torch.cat([weights.weight_ih, none_ih]),
            torch.cat([weights.weight_hh[: 2 * size], none_hh, weights.weight_hh[2 * size :]]),
            torch.cat([gates_bias, weights.bias_ih[2 * size :], weights.bias_hh[2 * size :]]),
        )

    def forward(self, a: Tensor, old: list[Tensor], new: list[Tensor]) -> None:
        """r, z, n take the place of the first three blocks of a; a_nh stays."""
        gates, n, n_h = torch.split(a, [2 * old[0].shape[1], *[old[0].shape[1]] * 2], 1)
        r, z = gates.sigmoid_().chunk(2, 1)
        n.addcmul_(r, n_h).tanh_()
        torch.lerp(n, old[0], z, out=new[0])

    def backward(
        self, a: Tensor, old: list[Tensor], new: list[Tensor], d_new: list[Tensor], d_a: Tensor
    ) -> list[Tensor | None]:
        """dL/dh directly is z ⊙ dL/dh'."""
        r, z, n, n_h = a.chunk(4, 1)
        d_r, d_z, d_n, d_nh = d_a.chunk(4, 1)
        torch.mul(d_new[0], 1 - z, out=d_n)
        torch.mul(d_new[0], old[0] - n, out=d_z)
        _tanh_backward(d_n, n, grad_input=d_n)
        torch.mul(d_n, n_h, out=d_r)
        torch.mul(d_n, r, out=d_nh)
        for gate, d_gate in ((r, d_r), (z, d_z)):
            _sigmoid_backward(d_gate, gate, grad_input=d_gate)
        return [d_new[0] * z]


class HandRNN:
    """h' = tanh(a)."""

    fields = 1

    def weights(self, weights: Any) -> StepWeights:
        """K and b: the layer's own."""
        return StepWeights(weights.weight_ih, weights.weight_hh, weights.bias_ih + weights.bias_hh)

    def forward(self, a: Tensor, old: list[Tensor], new: list[Tensor]) -> None:
        """tanh."""
        torch.tanh(a, out=new[0])

    def backward(
        self, a: Tensor, old: list[Tensor], new: list[Tensor], d_new: list[Tensor], d_a: Tensor
    ) -> list[Tensor | None]:
        """dL/da = (1 - h'²) ⊙ dL/dh'."""
        _tanh_backward(d_new[0], new[0], grad_input=d_a)
        return [None]


HAND_CELLS: dict[str, HandCell] = {"lstm": HandLSTM(), "gru": HandGRU(), "rnn": HandRNN()}
