"""A layer one time step at a time, for inputs that come one by one: weights packed once, the state kept."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from throughtime.errors import EngineError
from throughtime.kernels.native import library
from throughtime.kernels.native.generation import LayerState, LayerWeights, PackedModel, Stepper
from throughtime.nn.layers import GRU, LSTM, RNN
from throughtime.nn.recurrent import RecurrentLayer
from throughtime.nn.states import join_state, split_state

_TENSORS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_peephole")


def stepping_refusal(layer: RecurrentLayer) -> str | None:
    """Why the native engine cannot take a layer's steps one at a time; None where it can."""
    if (reason := library.missing_reason()) is not None:
        return reason
    if type(layer) not in (RNN, LSTM, GRU):
        return f"{type(layer).__name__} is none of tt.nn.RNN, LSTM and GRU and may compute something else"
    has = {
        "a direction that reads from the end": layer.bidirectional,
        "a projection": layer.proj_size > 0,
        "layer normalisation inside the cell": layer.layer_norm,
        "a reset gate before the product": not getattr(layer, "reset_after", True),
    }
    if found := [name for name, present in has.items() if present]:
        return f"native steps are without {found[0]}, which the layer has"
    if layer.engine not in ("auto", "native"):
        return f"the layer was made with engine={layer.engine!r}"
    weight = next(layer.parameters())
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return f"native steps are for float32 on the CPU, the weights are {weight.dtype} on {weight.device}"
    return None


def layer_weights(layer: RecurrentLayer) -> list[LayerWeights]:
    """The weights of a layer that `stepping_refusal` lets through, from the first of the stacked layers on."""
    cell = f"rnn_{layer.nonlinearity}" if isinstance(layer, RNN) else type(layer).__name__.lower()
    zoneout_h, zoneout_c = (*layer.zoneout, 0.0)[:2]
    found = []
    for index in range(layer.num_layers):
        tensors: dict[str, Any] = {name: getattr(layer, f"{name}_l{index}", None) for name in _TENSORS}
        found.append(LayerWeights(cell=cell, zoneout=(zoneout_h, zoneout_c), **tensors))
    return found


class LayerStepper:
    """`tt.nn.RNN`, `LSTM` or `GRU` one time step at a time, by the native engine, as in evaluation mode.

    The weights are copied when it is made, and stay as they were then; nothing here is differentiable. Precisions are
    "fp32", "bf16" and "int8" (`throughtime.kernels.native.generation` says what they mean).

        >>> import torch, throughtime as tt
        >>> lstm = tt.nn.LSTM(3, 5)
        >>> stepper = tt.nn.LayerStepper(lstm)
        >>> x = torch.randn(7, 1, 3)
        >>> steps = torch.stack([stepper.step(x[t]) for t in range(7)])
        >>> torch.allclose(steps, lstm(x)[0], atol=1e-6)
        True

    Raises:
        EngineError: the native engine does not compute this layer, or an unknown precision.
    """

    def __init__(self, layer: RecurrentLayer, rows: int = 1, *, precision: str = "fp32") -> None:
        if (reason := stepping_refusal(layer)) is not None:
            raise EngineError(f"LayerStepper: {reason}; call the layer itself with the state of the last call")
        self._layer = layer
        self._stepper = Stepper(PackedModel(layer_weights(layer), residual=layer.residual, precision=precision), rows)

    def step(self, inputs: Float[Tensor, "B I"], *, out: Tensor | None = None) -> Float[Tensor, "B H"]:
        """h(t) of the last layer after x(t); written into `out` where it is given.

        Raises:
            ShapeError: `inputs` or `out` of another shape or type, or not contiguous.
        """
        return self._stepper.feed(inputs, out=out)

    def begin(self, rows: int) -> None:
        """Begin anew with `rows` sequences, their states zero."""
        self._stepper.begin(rows)

    def state(self) -> Any:
        """The state as the layer itself returns it: h_n, or (h_n, c_n), each (L, B, H)."""
        kind = self._layer.cell_type.State
        layers = [[kind(*(field for field in state if field is not None))] for state in self._stepper.state()]
        return join_state(layers, equal_sizes=len(set(self._layer.hidden_sizes)) == 1, batched=True)

    def set_state(self, state: Any) -> None:
        """Go on from a state as the layer itself returns it.

        Raises:
            ShapeError: it is not one of this layer and of as many rows.
        """
        layers = split_state(
            state,
            kind=self._layer.cell_type.State,
            sizes=[self._layer._state_sizes(index) for index in range(self._layer.num_layers)],
            directions=1,
            batched=True,
            batch=self._stepper.rows,
            who="LayerStepper",
        )
        fields = [[field.contiguous() for field in layer[0]] for layer in layers]
        self._stepper.set_state([LayerState(own[0], own[1] if len(own) > 1 else None) for own in fields])

    def reorder(self, indices: Int[Tensor, " B"]) -> None:
        """Row i goes on from the state of what row indices[i] was; there may be more rows or fewer than before."""
        self._stepper.reorder(indices)
