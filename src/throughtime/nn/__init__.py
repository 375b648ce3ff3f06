"""Layers that are drop-in for `torch.nn`'s, and do more."""

from throughtime.cells import (
    DeepTransitionCell,
    GRUCell,
    LeakyCell,
    LSTMCell,
    RNNCell,
    SkipCell,
    chrono_,
    identity_,
    orthogonal_,
    unit_forget_bias_,
)
from throughtime.nn.layers import GRU, LSTM, RNN
from throughtime.nn.recurrent import RecurrentLayer
from throughtime.nn.replace import replace_torch_layers
from throughtime.nn.stack import CellStack
from throughtime.nn.states import StepStates
from throughtime.nn.stepping import LayerStepper
from throughtime.nn.steps import LayerSteps

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "CellStack",
    "DeepTransitionCell",
    "GRUCell",
    "LSTMCell",
    "LayerStepper",
    "LayerSteps",
    "LeakyCell",
    "RNNCell",
    "RecurrentLayer",
    "SkipCell",
    "StepStates",
    "chrono_",
    "identity_",
    "orthogonal_",
    "replace_torch_layers",
    "unit_forget_bias_",
]
