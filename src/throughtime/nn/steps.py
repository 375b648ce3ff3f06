"""The layers of one call, one step at a time: for networks in which something happens between the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from throughtime.errors import UsageError
from throughtime.layers import locked_mask, zoneout_masks
from throughtime.nn.recurrent import RecurrentLayer


class LayerSteps:
    """A recurrent layer's steps 0..T-1, its weights and random masks drawn once for all of them, as a call draws them.

    Differentiable, and in plain torch: where nothing happens between the steps, the layer itself is much faster, and
    where no gradients are wanted `LayerStepper` is.

        >>> import torch, throughtime as tt
        >>> lstm = tt.nn.LSTM(3, 5, zoneout=0.1).eval()
        >>> x = torch.randn(7, 2, 3)
        >>> steps, states, h = LayerSteps(lstm, 7, x[0]), lstm.zero_states(2, x), []
        >>> for t in range(7):
        ...     h_t, states = steps.advance(t, x[t], states)
        ...     h.append(h_t)
        >>> torch.allclose(torch.stack(h), lstm(x)[0], atol=1e-6)
        True

    Args:
        layer: `tt.nn.RNN`, `LSTM` or `GRU` in one direction.
        steps: T.
        like: a tensor (B, ·) of the batch, device and type of the steps to come.

    Raises:
        UsageError: the layer reads in both directions.
    """

    def __init__(self, layer: RecurrentLayer, steps: int, like: Float[Tensor, "B _"]) -> None:
        if layer.bidirectional:
            raise UsageError(
                f"{type(layer).__name__}: a bidirectional layer cannot be taken step by step; set bidirectional=False"
            )
        self._layer = layer
        batch, training = like.shape[0], layer.training
        self._equations = [layer._equations(layer._weights(suffix)) for _, suffix in layer._suffixes()]
        sizes = [layer._state_sizes(index) for index in range(layer.num_layers)]
        self._inputs: list[Tensor | None] = [None] * layer.num_layers
        self._recurrent: list[Tensor | None] = [None] * layer.num_layers
        self._zoneout: list[list[Tensor | None]] = [[] for _ in sizes]
        for index, own in enumerate(sizes):
            width = layer.input_size if index == 0 else sizes[index - 1][0]
            if training and layer.variational_dropout:
                self._inputs[index] = locked_mask(like, (batch, width), layer.variational_dropout)
            if training and layer.recurrent_dropout:
                self._recurrent[index] = locked_mask(like, (batch, own[0]), layer.recurrent_dropout)
            if any(layer.zoneout):
                self._zoneout[index] = zoneout_masks(like.expand(steps, *like.shape), own, layer.zoneout, training)

    def advance(self, t: int, x: Float[Tensor, "B I"], states: Sequence[Any]) -> tuple[Float[Tensor, "B H"], list[Any]]:
        """Step t: h(t) of the last layer, and the new states, one NamedTuple for each layer."""
        after: list[Any] = []
        layer = self._layer
        for index, (equations, state) in enumerate(zip(self._equations, states, strict=True)):
            mask = self._inputs[index]
            seen = x if mask is None else x * mask
            new, _ = equations.advance(equations.project_inputs(seen), state, self._recurrent[index])
            if shares := self._zoneout[index]:
                fields = [
                    b if share is None else share[t] * a + (1 - share[t]) * b
                    for share, a, b in zip(shares, state, new, strict=True)
                ]
                new = type(state)(*fields)
            after.append(new)
            h = new[0] + x if index and layer.residual else new[0]
            x = functional.dropout(h, layer.dropout, layer.training and index < layer.num_layers - 1)
        return x, after
