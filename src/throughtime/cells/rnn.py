"""The plain recurrent cell.

    a(t) = b + W h(t-1) + U x(t)      (10.8)
    h(t) = tanh(a(t))                 (10.9), or max(0, a(t))

With layer normalisation: a(t) = b + LN(W h(t-1)) + LN(U x(t)).
Source: Goodfellow, Bengio & Courville 2016, eqs. 10.8-10.9; Elman 1990. Rectified units: Le, Jaitly & Hinton 2015.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from throughtime.cells.builtin import BuiltinCell
from throughtime.cells.normalisation import normalise_gates
from throughtime.errors import UsageError


class RNNState(NamedTuple):
    """h(t) (B, H)."""

    h: Tensor


class RNNGates(NamedTuple):
    """A plain recurrent network has no gates."""


class RNNWeights(NamedTuple):
    """U (H, I), W (H, H), the two biases (H,) whose sum is b, and the gains (H,) of layer normalisation."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    gain_ih: Tensor | None = None
    gain_hh: Tensor | None = None


@dataclass(frozen=True)
class RNNEquations:
    """Eqs. 10.8-10.9 with the weights they use."""

    family: ClassVar[str] = "rnn"
    gates_type: ClassVar[type[RNNGates]] = RNNGates
    weights: RNNWeights
    nonlinearity: str = "tanh"

    @property
    def torch_kernel(self) -> str:
        """The name of PyTorch's fused kernel."""
        return f"rnn_{self.nonlinearity}"

    def beyond_torch(self) -> str | None:
        """What these equations have and PyTorch's do not."""
        return "layer normalisation inside the cell" if self.weights.gain_ih is not None else None

    def project_inputs(self, inputs: Float[Tensor, "*B I"]) -> Float[Tensor, "*B H"]:
        """b + U x(t), for every step at once."""
        w = self.weights
        a_x = normalise_gates(inputs @ w.weight_ih.mT, w.gain_ih, 1)  # (*B, H)
        return a_x if w.bias_ih is None or w.bias_hh is None else a_x + (w.bias_ih + w.bias_hh)

    def advance(
        self, projected: Float[Tensor, "B H"], state: RNNState, recurrent_mask: Float[Tensor, "B H"] | None
    ) -> tuple[RNNState, RNNGates]:
        """h(t) = tanh(b + W h(t-1) + U x(t))."""
        w = self.weights
        h = state.h if recurrent_mask is None else recurrent_mask * state.h
        a = projected + normalise_gates(h @ w.weight_hh.mT, w.gain_hh, 1)  # (B, H)
        return RNNState(torch.tanh(a) if self.nonlinearity == "tanh" else functional.relu(a)), RNNGates()


class RNNCell(BuiltinCell):
    """h(t) = tanh(b + W h(t-1) + U x(t)), or with max(0, ·) for tanh: drop-in for `torch.nn.RNNCell`.

    `cell(x, h)` takes x (B, I) and h (B, H), or a single (I,) and (H,), and returns the new h.

    Source: Goodfellow, Bengio & Courville 2016, eqs. 10.8-10.9.
    """

    State = RNNState
    family = "rnn"
    Weights = RNNWeights
    bare_state = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        layer_norm: bool = False,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise UsageError(f"RNNCell: nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
        super().__init__(input_size, hidden_size)
        self.nonlinearity = nonlinearity
        shapes = self.parameter_shapes(input_size, hidden_size, bias=bias, layer_norm=layer_norm)
        self._create(shapes, bias=bias, device=device, dtype=dtype)

    @staticmethod
    def parameter_shapes(
        input_size: int, hidden_size: int, *, bias: bool, layer_norm: bool
    ) -> dict[str, tuple[int, ...]]:
        """Names and shapes, in PyTorch's order, what goes beyond it last."""
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (hidden_size, input_size),
            "weight_hh": (hidden_size, hidden_size),
        }
        if bias:
            shapes |= {"bias_ih": (hidden_size,), "bias_hh": (hidden_size,)}
        if layer_norm:
            shapes |= {"gain_ih": (hidden_size,), "gain_hh": (hidden_size,)}
        return shapes

    def equations(self, weights: Any) -> RNNEquations:
        """The cell's equations with the given weights."""
        return RNNEquations(weights, self.nonlinearity)
