"""The gated recurrent unit.

    r(t) = σ(b_r + U_r x(t) + W_r h(t-1))                      reset gate     (10.47)
    z(t) = σ(b_z + U_z x(t) + W_z h(t-1))                      update gate    (10.46)
    n(t) = tanh(b_n + U_n x(t) + r(t) ⊙ (W_n h(t-1) + b_hn))   candidate      (inside 10.45)
    h(t) = (1 - z(t)) ⊙ n(t) + z(t) ⊙ h(t-1)                   output         (10.45)

This is the variant of PyTorch and cuDNN: the reset gate acts after the product (`reset_after=True`). The paper of
2014 has it before: n(t) = tanh(b_n + U_n x(t) + W_n (r(t) ⊙ h(t-1)) + b_hn). The gates stand in PyTorch's order
r, z, n. With layer normalisation every product is normalised before its gate.

Source: Goodfellow, Bengio & Courville 2016, eqs. 10.45-10.47 (whose u is z here); Cho et al. 2014, eqs. 5-8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from throughtime.cells.builtin import BuiltinCell
from throughtime.cells.normalisation import normalise_gates


class GRUState(NamedTuple):
    """h(t) (B, H)."""

    h: Tensor


class GRUGates(NamedTuple):
    """The gates after their nonlinearities, each (B, H): reset, update, candidate."""

    r: Tensor
    z: Tensor
    n: Tensor


class GRUWeights(NamedTuple):
    """U (3H, I), W (3H, H), biases (3H,), gains of layer normalisation (3H,)."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    gain_ih: Tensor | None = None
    gain_hh: Tensor | None = None


@dataclass(frozen=True)
class GRUEquations:
    """Eqs. 10.45-10.47 with the weights they use."""

    family: ClassVar[str] = "gru"
    gates_type: ClassVar[type[GRUGates]] = GRUGates
    torch_kernel: ClassVar[str] = "gru"
    weights: GRUWeights
    reset_after: bool = True

    def beyond_torch(self) -> str | None:
        """What these equations have and PyTorch's do not."""
        if not self.reset_after:
            return "reset gate before the product"
        return "layer normalisation inside the cell" if self.weights.gain_ih is not None else None

    def project_inputs(self, inputs: Float[Tensor, "*B I"]) -> Float[Tensor, "*B G"]:
        """b + U x(t) of r, z and n, for every step at once."""
        w = self.weights
        a_x = normalise_gates(inputs @ w.weight_ih.mT, w.gain_ih, 3)  # (*B, 3H)
        return a_x if w.bias_ih is None else a_x + w.bias_ih

    def advance(
        self, projected: Float[Tensor, "B G"], state: GRUState, recurrent_mask: Float[Tensor, "B H"] | None
    ) -> tuple[GRUState, GRUGates]:
        """h(t) = (1 - z) ⊙ n + z ⊙ h(t-1)."""
        h = state.h if recurrent_mask is None else recurrent_mask * state.h
        x_r, x_z, x_n = projected.chunk(3, dim=-1)  # (B, H) each
        if self.reset_after:
            h_r, h_z, h_n = self._product(h, slice(0, 3)).chunk(3, dim=-1)
            r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
            n = torch.tanh(x_n + r * h_n)
        else:
            h_r, h_z = self._product(h, slice(0, 2)).chunk(2, dim=-1)
            r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
            n = torch.tanh(x_n + self._product(r * h, slice(2, 3)))
        return GRUState((1 - z) * n + z * state.h), GRUGates(r, z, n)

    def _product(self, h: Tensor, gates: slice) -> Tensor:
        """W h + b_h for a range of the gates r, z, n: (B, gates · H)."""
        w = self.weights
        size = w.weight_hh.shape[0] // 3
        rows = slice(gates.start * size, gates.stop * size)
        gain = None if w.gain_hh is None else w.gain_hh[rows]
        product = normalise_gates(h @ w.weight_hh[rows].mT, gain, gates.stop - gates.start)
        return product if w.bias_hh is None else product + w.bias_hh[rows]


class GRUCell(BuiltinCell):
    """h(t) = (1 - z) ⊙ n + z ⊙ h(t-1): drop-in for `torch.nn.GRUCell`.

    `cell(x, h)` takes x (B, I) and h (B, H), or a single (I,) and (H,), and returns the new h. Beyond PyTorch:
    `reset_after=False` (the reset gate before the product, as in 2014) and `layer_norm`.

    Source: Goodfellow, Bengio & Courville 2016, eqs. 10.45-10.47; Cho et al. 2014.
    """

    State = GRUState
    family = "gru"
    Weights = GRUWeights
    bare_state = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
        layer_norm: bool = False,
    ) -> None:
        super().__init__(input_size, hidden_size)
        self.reset_after = reset_after
        shapes = self.parameter_shapes(input_size, hidden_size, bias=bias, layer_norm=layer_norm)
        self._create(shapes, bias=bias, device=device, dtype=dtype)

    @staticmethod
    def parameter_shapes(
        input_size: int, hidden_size: int, *, bias: bool, layer_norm: bool
    ) -> dict[str, tuple[int, ...]]:
        """Names and shapes, in PyTorch's order, what goes beyond it last."""
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (3 * hidden_size, input_size),
            "weight_hh": (3 * hidden_size, hidden_size),
        }
        if bias:
            shapes |= {"bias_ih": (3 * hidden_size,), "bias_hh": (3 * hidden_size,)}
        if layer_norm:
            shapes |= {"gain_ih": (3 * hidden_size,), "gain_hh": (3 * hidden_size,)}
        return shapes

    def equations(self, weights: Any) -> GRUEquations:
        """The cell's equations with the given weights."""
        return GRUEquations(weights, self.reset_after)
