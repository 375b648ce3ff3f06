"""The long short-term memory.

    i(t) = σ(b_i + U_i x(t) + W_i h(t-1))       input gate     (10.42, the book's external input gate)
    f(t) = σ(b_f + U_f x(t) + W_f h(t-1))       forget gate    (10.40)
    g(t) = tanh(b_g + U_g x(t) + W_g h(t-1))    candidate      (inside 10.41; the book writes σ, what trains is tanh)
    o(t) = σ(b_o + U_o x(t) + W_o h(t-1))       output gate    (10.44)
    c(t) = f(t) ⊙ c(t-1) + i(t) ⊙ g(t)          memory         (10.41)
    h(t) = o(t) ⊙ tanh(c(t))                    output         (10.43)

σ is the logistic sigmoid. The gates stand in PyTorch's order i, f, g, o.

Peepholes (Gers & Schmidhuber 2000): i and f also see p ⊙ c(t-1), o sees p ⊙ c(t).
Projection (Sak, Senior & Beaufays 2014): h(t) = R (o(t) ⊙ tanh(c(t))), a vector of `proj_size`.
Layer normalisation (Ba, Kiros & Hinton 2016): of each product before its gate, and of c(t) before its tanh.
Source: Goodfellow, Bengio & Courville 2016, eqs. 10.40-10.44; Hochreiter & Schmidhuber 1997.
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
from throughtime.errors import ShapeError


class LSTMState(NamedTuple):
    """h(t) (B, H), or (B, P) with a projection, and the memory c(t) (B, H)."""

    h: Tensor
    c: Tensor


class LSTMGates(NamedTuple):
    """The gates after their nonlinearities, each (B, H): input, forget, candidate, output."""

    i: Tensor
    f: Tensor
    g: Tensor
    o: Tensor


class LSTMWeights(NamedTuple):
    """U (4H, I), W (4H, H or P), biases (4H,), projection (P, H), peepholes (3, H) for i, f, o; the gains of layer
    normalisation (4H,), and gain and shift (H,) for the memory.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    weight_hr: Tensor | None = None
    weight_peephole: Tensor | None = None
    gain_ih: Tensor | None = None
    gain_hh: Tensor | None = None
    gain_c: Tensor | None = None
    shift_c: Tensor | None = None


@dataclass(frozen=True)
class LSTMEquations:
    """Eqs. 10.40-10.44 with the weights they use."""

    family: ClassVar[str] = "lstm"
    gates_type: ClassVar[type[LSTMGates]] = LSTMGates
    torch_kernel: ClassVar[str] = "lstm"
    weights: LSTMWeights

    def beyond_torch(self) -> str | None:
        """What these equations have and PyTorch's do not."""
        if self.weights.weight_peephole is not None:
            return "peepholes"
        return "layer normalisation inside the cell" if self.weights.gain_ih is not None else None

    def project_inputs(self, inputs: Float[Tensor, "*B I"]) -> Float[Tensor, "*B G"]:
        """b + U x(t) of all four gates, for every step at once."""
        w = self.weights
        a_x = normalise_gates(inputs @ w.weight_ih.mT, w.gain_ih, 4)  # (*B, 4H)
        return a_x if w.bias_ih is None or w.bias_hh is None else a_x + (w.bias_ih + w.bias_hh)

    def advance(
        self, projected: Float[Tensor, "B G"], state: LSTMState, recurrent_mask: Float[Tensor, "B H"] | None
    ) -> tuple[LSTMState, LSTMGates]:
        """c(t) = f ⊙ c(t-1) + i ⊙ g, h(t) = o ⊙ tanh(c(t))."""
        w = self.weights
        h = state.h if recurrent_mask is None else recurrent_mask * state.h
        a = projected + normalise_gates(h @ w.weight_hh.mT, w.gain_hh, 4)  # (B, 4H)
        a_i, a_f, a_g, a_o = a.chunk(4, dim=-1)  # (B, H) each
        if w.weight_peephole is not None:
            p_i, p_f, p_o = w.weight_peephole
            a_i, a_f = a_i + p_i * state.c, a_f + p_f * state.c
        i, f, g = torch.sigmoid(a_i), torch.sigmoid(a_f), torch.tanh(a_g)
        c = f * state.c + i * g
        if w.weight_peephole is not None:
            a_o = a_o + p_o * c
        o = torch.sigmoid(a_o)
        seen = c if w.gain_c is None else functional.layer_norm(c, c.shape[-1:], w.gain_c, w.shift_c)
        h = o * torch.tanh(seen)
        if w.weight_hr is not None:
            h = h @ w.weight_hr.mT  # (B, P)
        return LSTMState(h, c), LSTMGates(i, f, g, o)


class LSTMCell(BuiltinCell):
    """c(t) = f ⊙ c(t-1) + i ⊙ g, h(t) = o ⊙ tanh(c(t)): drop-in for `torch.nn.LSTMCell`.

    `cell(x, (h, c))` takes x (B, I), h (B, H) and c (B, H), or single sequences without B, and returns
    `LSTMState(h, c)`. Beyond PyTorch: `proj_size` (h is then (B, P)), `peepholes`, `layer_norm`.

    Source: Goodfellow, Bengio & Courville 2016, eqs. 10.40-10.44.
    """

    State = LSTMState
    family = "lstm"
    Weights = LSTMWeights

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        proj_size: int = 0,
        peepholes: bool = False,
        layer_norm: bool = False,
    ) -> None:
        super().__init__(input_size, hidden_size)
        self.proj_size = proj_size
        shapes = self.parameter_shapes(
            input_size, hidden_size, bias=bias, proj_size=proj_size, peepholes=peepholes, layer_norm=layer_norm
        )
        self._create(shapes, bias=bias, device=device, dtype=dtype)

    @staticmethod
    def parameter_shapes(
        input_size: int, hidden_size: int, *, bias: bool, proj_size: int, peepholes: bool, layer_norm: bool
    ) -> dict[str, tuple[int, ...]]:
        """Names and shapes, in PyTorch's order, what goes beyond it last.

        Raises:
            ShapeError: `proj_size` is not smaller than `hidden_size`.
        """
        if not 0 <= proj_size < hidden_size:
            raise ShapeError(
                f"LSTM: proj_size must be 0 (none) or smaller than hidden_size={hidden_size}, got {proj_size}"
            )
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (4 * hidden_size, input_size),
            "weight_hh": (4 * hidden_size, proj_size or hidden_size),
        }
        if bias:
            shapes |= {"bias_ih": (4 * hidden_size,), "bias_hh": (4 * hidden_size,)}
        if proj_size:
            shapes |= {"weight_hr": (proj_size, hidden_size)}
        if peepholes:
            shapes |= {"weight_peephole": (3, hidden_size)}
        if layer_norm:
            shapes |= {"gain_ih": (4 * hidden_size,), "gain_hh": (4 * hidden_size,)}
            shapes |= {"gain_c": (hidden_size,), "shift_c": (hidden_size,)}
        return shapes

    def state_sizes(self) -> tuple[int, ...]:
        """h has `proj_size` where there is a projection."""
        return (self.proj_size or self.hidden_size, self.hidden_size)

    def equations(self, weights: Any) -> LSTMEquations:
        """The cell's equations with the given weights."""
        return LSTMEquations(weights)
