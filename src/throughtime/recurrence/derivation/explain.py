"""`explain`: backpropagation through time by hand, for a plain recurrent network and for an LSTM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from throughtime.errors import ShapeError, UsageError
from throughtime.kernels import Recurrence
from throughtime.recurrence.derivation import lstm, rnn
from throughtime.recurrence.derivation.problem import Problem
from throughtime.recurrence.derivation.result import Derivation
from throughtime.recurrence.lengths import checked_lengths, inside


def explain(
    cell: nn.Module,
    readout: nn.Module,
    inputs: Float[Tensor, "T B I"],
    targets: Int[Tensor, "T B"],
    state: Any = None,
    *,
    lengths: Int[Tensor, " B"] | Sequence[int] | None = None,
) -> Derivation:
    """The gradient of L = -Σ_t log ŷ_y(t)(t), by the book's equations instead of autograd, with every step's part.

    It is a plain loop over time, made to be read (`throughtime.recurrence.derivation.rnn` and `.lstm`) and printed:

        >>> import torch, throughtime as tt
        >>> from throughtime.layers import Readout
        >>> cell, readout = tt.nn.RNNCell(3, 4), Readout(4, 5)
        >>> found = explain(cell, readout, torch.randn(6, 2, 3), torch.randint(5, (6, 2)))
        >>> found.steps[2].nabla_h.shape, found.gradients["weight_hh"].shape  # ∇_h(3) L, and ∇_W L
        (torch.Size([2, 4]), torch.Size([4, 4]))

    Args:
        cell: `tt.nn.RNNCell` with tanh, `tt.nn.LSTMCell`, or `tt.nn.RNN` or `tt.nn.LSTM` of one layer in one direction.
        readout: what has V as `weight_ho` (O, H) and c as `bias_ho` (O,).
        inputs: x(1..τ), time first.
        targets: y(1..τ), classes 0..O-1; what stands behind a length is not looked at.
        state: the state before the first step, as the cell or layer takes it; zeros when missing.
        lengths: how many steps each sequence has, in any order, zero allowed.

    Raises:
        ShapeError: inputs, targets, state or lengths that do not fit.
        UsageError: another network than these, or one with noise.

    Source: Goodfellow, Bengio & Courville 2016, section 10.2.2, eqs. 10.17-10.28; Hochreiter & Schmidhuber 1997.
    """
    call = _only_recurrence(cell, inputs, state)
    derive = _derivation_of(call, who=type(cell).__name__)
    x = call.inputs
    lengths = checked_lengths(lengths, x, who="explain")
    running = inside(lengths, x)  # (T, B)
    V, c = _output_weights(readout, hidden_size=call.state.h.shape[-1])
    y = _inside_targets(targets, running, classes=len(V))
    # What stands in the padding must not matter, not even through 0 · nan.
    x = torch.where(running[..., None], x, 0)
    with torch.no_grad():
        return derive(Problem(call.cell, V, c, x, y, running, call.state))


def _only_recurrence(cell: nn.Module, inputs: Tensor, state: Any) -> Recurrence:
    """The one recurrence that a cell, or a layer of one cell, is.

    Raises:
        UsageError: none, several, or a random one.
    """
    who = type(cell).__name__
    recurrences: Any = getattr(cell, "recurrences", None)
    if recurrences is None:
        raise UsageError(f"explain: expected a cell or a layer of tt.nn, got {who}")
    if getattr(cell, "batch_first", False):
        raise UsageError(f"explain: time comes first here, got {who} with batch_first=True; make it without")
    calls: list[Recurrence] = [call for _, call in recurrences(inputs, state)]
    if len(calls) != 1:
        raise UsageError(f"explain: expected one layer in one direction, got {who} with {len(calls)} recurrences")
    dropped = [getattr(cell, name, 0) for name in ("recurrent_dropout", "variational_dropout", "weight_dropout")]
    if calls[0].zoneout is not None or (cell.training and any(dropped)):
        raise UsageError(f"explain: {who} has dropout or zoneout, which the derivation has not; set them to 0")
    return calls[0]


def _derivation_of(call: Recurrence, *, who: str) -> Callable[[Problem], Derivation]:
    """The derivation for a recurrence's equations.

    Raises:
        UsageError: there is none.
    """
    equations: Any = call.cell
    if equations.family not in ("rnn", "lstm"):
        raise UsageError(
            f"explain: derived by hand are RNN and LSTM, got {who}; tt.bptt.step_gradients takes any cell apart"
        )
    if equations.family == "rnn" and equations.nonlinearity != "tanh":
        raise UsageError(f"explain: eqs. 10.19-10.28 are those of tanh, got {who} with {equations.nonlinearity}")
    projected = getattr(equations.weights, "weight_hr", None) is not None
    beyond = "a projection" if projected else equations.beyond_torch()
    if beyond is not None:
        raise UsageError(f"explain: {who} has {beyond}, which the derivation has not")
    return rnn.derive if equations.family == "rnn" else lstm.derive


def _output_weights(readout: nn.Module, *, hidden_size: int) -> tuple[Tensor, Tensor]:
    """V (O, H) and c (O,).

    Raises:
        UsageError: the readout has none.
        ShapeError: it is for another hidden size.
    """
    V, c = getattr(readout, "weight_ho", None), getattr(readout, "bias_ho", None)
    if V is None or c is None:
        raise UsageError(
            f"explain: readout must have weight_ho and bias_ho, got {type(readout).__name__}; "
            "use throughtime.layers.Readout"
        )
    if V.shape[1:] != (hidden_size,):
        raise ShapeError(f"explain: readout's weight_ho must be (O, {hidden_size}), got {tuple(V.shape)}")
    return V, c


def _inside_targets(targets: Tensor, running: Tensor, *, classes: int) -> Tensor:
    """The targets (T, B), 0 behind each sequence's end.

    Raises:
        ShapeError: another shape than the inputs', or a class that there is not.
    """
    if targets.shape != running.shape:
        raise ShapeError(
            f"explain: targets must be {tuple(running.shape)}, one for each step and sequence, "
            f"got {tuple(targets.shape)}"
        )
    y = torch.where(running, targets, 0)
    if y.numel() and (int(y.min()) < 0 or int(y.max()) >= classes):
        raise ShapeError(
            f"explain: targets must lie in 0..{classes - 1}, the outputs of readout, got {int(y.min())}..{int(y.max())}"
        )
    return y
