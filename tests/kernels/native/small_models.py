"""Small models in the form in which the native engine takes them."""

from __future__ import annotations

from typing import Any

import torch

from throughtime.kernels.native.generation import Ends, LayerWeights

CELLS = ("rnn_tanh", "rnn_relu", "lstm", "gru")
GATES = {"lstm": 4, "gru": 3}


def some_layers(cell: str, inputs: int, sizes: list[int], *, bias: bool = True, **extras: Any) -> list[LayerWeights]:
    torch.manual_seed(len(sizes) + inputs)
    layers = []
    for units in sizes:
        wide = GATES.get(cell, 1) * units
        biases = [torch.rand(wide) - 0.5 if bias else None for _ in range(2)]
        weights = [(torch.rand(wide, depth) - 0.5) * 2 / units**0.5 for depth in (inputs, units)]
        peephole = torch.rand(3, units) - 0.5 if extras.get("peepholes") else None
        layers.append(LayerWeights(cell, *weights, *biases, peephole, extras.get("zoneout", (0.0, 0.0))))
        inputs = units
    return layers


def some_ends(vocabulary: int, layers: list[LayerWeights]) -> Ends:
    torch.manual_seed(vocabulary)
    return Ends(
        torch.randn(vocabulary, layers[0].inputs),
        torch.randn(vocabulary, layers[-1].units) / layers[-1].units ** 0.5,
        torch.randn(vocabulary),
    )
