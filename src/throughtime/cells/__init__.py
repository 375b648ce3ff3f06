"""One time step: the equations, readable."""

from throughtime.cells.builtin import BuiltinCell, by_torch_names, check_dtype, initialise
from throughtime.cells.cell import Cell
from throughtime.cells.deep_transition import DeepTransitionCell
from throughtime.cells.gru import GRUCell, GRUEquations, GRUGates, GRUState, GRUWeights
from throughtime.cells.initialisation import chrono_, identity_, orthogonal_, unit_forget_bias_
from throughtime.cells.kinds import CELL_KINDS, cell_kind
from throughtime.cells.leaky import LeakyCell, spread_alphas
from throughtime.cells.lstm import LSTMCell, LSTMEquations, LSTMGates, LSTMState, LSTMWeights
from throughtime.cells.rnn import RNNCell, RNNEquations, RNNGates, RNNState, RNNWeights
from throughtime.cells.skip import SkipCell, skip_state
from throughtime.cells.tanh import TanhCell

__all__ = [
    "CELL_KINDS",
    "BuiltinCell",
    "Cell",
    "DeepTransitionCell",
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
    "LeakyCell",
    "RNNCell",
    "RNNEquations",
    "RNNGates",
    "RNNState",
    "RNNWeights",
    "SkipCell",
    "TanhCell",
    "by_torch_names",
    "cell_kind",
    "check_dtype",
    "chrono_",
    "identity_",
    "initialise",
    "orthogonal_",
    "skip_state",
    "spread_alphas",
    "unit_forget_bias_",
]
