"""Backpropagation through time, derived by hand: what autograd computes, written out step by step."""

from throughtime.recurrence.derivation.explain import explain
from throughtime.recurrence.derivation.lstm import LSTMStep
from throughtime.recurrence.derivation.result import Contributions, Derivation
from throughtime.recurrence.derivation.rnn import RNNStep

__all__ = ["Contributions", "Derivation", "LSTMStep", "RNNStep", "explain"]
