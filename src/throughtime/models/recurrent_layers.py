"""The recurrent layers that a model's configuration asks for."""

from __future__ import annotations

from typing import Any

from throughtime.cells.initialisation import unit_forget_bias_
from throughtime.nn import GRU, LSTM, RNN, RecurrentLayer


def recurrent_layers(
    shape: Any, input_size: int, hidden_size: int | list[int], *, bidirectional: bool = False
) -> RecurrentLayer:
    """Layers by the keys that language models and encoder-decoders share; an LSTM's forget gates begin open."""
    kind: Any = {"rnn": RNN, "lstm": LSTM, "gru": GRU}[shape.cell]
    layers: RecurrentLayer = kind(
        input_size,
        hidden_size,
        shape.num_layers,
        bidirectional=bidirectional,
        dropout=shape.dropout,
        variational_dropout=shape.variational_dropout,
        recurrent_dropout=shape.recurrent_dropout,
        zoneout=shape.zoneout,
        weight_dropout=shape.weight_dropout,
        layer_norm=shape.layer_norm,
        residual=shape.residual,
        engine=shape.engine,
    )
    if shape.cell == "lstm":
        unit_forget_bias_(layers)
    return layers
