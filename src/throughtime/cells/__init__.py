"""One time step: the equations, readable."""

from throughtime.cells.builtin import BuiltinCell, by_torch_names, check_dtype, initialise
from throughtime.cells.cell import Cell
from throughtime.cells.gru import GRUCell, GRUEquations, GRUGates, GRUState, GRUWeights
from throughtime.cells.lstm import LSTMCell, LSTMEquations, LSTMGates, LSTMState, LSTMWeights
from throughtime.cells.rnn import RNNCell, RNNEquations, RNNGates, RNNState, RNNWeights

__all__ = [
    "BuiltinCell",
    "Cell",
    "GRUCell",
    "GRUEquations",
    "GRUGates",
    "GRUState",
    "GRUWeights",
    "LSTMCell",
    "LSTMEquations",
    "LSTMGates",
    "LSTMState",
    "LSTMWeights",
    "RNNCell",
    "RNNEquations",
    "RNNGates",
    "RNNState",
    "RNNWeights",
    "by_torch_names",
    "check_dtype",
    "initialise",
]
