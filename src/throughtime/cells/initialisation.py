"""Initialisations that let gradients and memories last, in place, for the built-in cells and the layers made of them.

    orthogonal_          W of every gate orthogonal: W h is as long as h                 Saxe, McClelland & Ganguli 2014
    identity_            W = I, b = 0: a rectified network begins by copying its state   Le, Jaitly & Hinton 2015
    unit_forget_bias_    b_f = 1: the memory of an LSTM begins by lasting                Gers et al. 2000
    chrono_              b_f = log u, b_i = -b_f with u ~ U(1, T_max - 1): memories      Tallec & Ollivier 2018
                         that last for between 2 and T_max steps

They set each layer and each direction. A gate has two biases, of which only the sum matters: the one of the inputs
takes the value, the other is set to zero.
Source: Goodfellow, Bengio & Courville 2016, sections 10.7 and 10.10.1; the papers named above.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from throughtime.errors import UsageError

_GATES = {"rnn": "a", "lstm": "ifgo", "gru": "rzn"}  # the order of the blocks of H rows


class _Parameters(NamedTuple):
    """W (G · H, H or P) and the biases (G · H,) of one layer and direction, with the names of its G gates."""

    gates: str
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None

    def block(self, gate: str) -> slice:
        """The rows of one gate."""
        size = len(self.weight_hh) // len(self.gates)
        start = self.gates.index(gate) * size
        return slice(start, start + size)


def orthogonal_(module: nn.Module, *, generator: torch.Generator | None = None) -> None:
    """Draw the recurrent weights W of each gate as an orthogonal matrix, uniformly: ‖W h‖ = ‖h‖.

    Where W is not square, as with a projection, its columns are orthonormal.

    Args:
        module: `tt.nn.RNN`, `LSTM`, `GRU` or one of their cells.
        generator: what to draw from; torch's global one when missing.

    Raises:
        UsageError: another kind of module.

    Source: Saxe, McClelland & Ganguli 2014; Goodfellow, Bengio & Courville 2016, section 10.7.
    """
    for parameters in _each(module, who="orthogonal_"):
        for gate in parameters.gates:
            nn.init.orthogonal_(parameters.weight_hh[parameters.block(gate)], generator=generator)


def identity_(module: nn.Module) -> None:
    """Set W = I and b = 0 in a plain recurrent network, meant for rectified units (`nonlinearity="relu"`).

    Without inputs a state h ≥ 0 then stays as it is, and so does the gradient. U is left as it was drawn.

    Raises:
        UsageError: not a plain recurrent network.

    Source: Le, Jaitly & Hinton 2015, section 2.
    """
    for parameters in _each(module, who="identity_"):
        if parameters.gates != _GATES["rnn"]:
            raise UsageError(
                f"identity_: expected an RNN or RNNCell, got {type(module).__name__}, whose gates would not keep "
                "the state as it is; use unit_forget_bias_, chrono_ or orthogonal_"
            )
        with torch.no_grad():
            nn.init.eye_(parameters.weight_hh)
            for bias in (parameters.bias_ih, parameters.bias_hh):
                if bias is not None:
                    bias.zero_()


def unit_forget_bias_(module: nn.Module) -> None:
    """Set the biases of an LSTM's forget gates to 1: f(t) is then near 0.73 at first, and the memory lasts.

    Raises:
        UsageError: not an LSTM, or one without biases.

    Source: Gers, Schmidhuber & Cummins 2000; Jozefowicz, Zaremba & Sutskever 2015; Goodfellow, Bengio & Courville
        2016, section 10.10.2.
    """
    for parameters in _each(module, who="unit_forget_bias_"):
        if "f" not in parameters.gates:
            raise UsageError(
                f"unit_forget_bias_: expected an LSTM or LSTMCell, got {type(module).__name__}, which has no forget "
                "gate; for a GRU use chrono_"
            )
        _set_bias(parameters, "f", torch.ones(()), who="unit_forget_bias_", module=module)


def chrono_(module: nn.Module, longest: int, *, generator: torch.Generator | None = None) -> None:
    """Draw the gates' biases so that units remember for between 2 and `longest` time steps, evenly spread.

    A gate that stands at σ(log u) keeps a memory for about u + 1 steps. With u ~ U(1, `longest` - 1), the bias of an
    LSTM's forget gate is log u and that of its input gate -log u. In a GRU the update gate z keeps the old state,
    h = (1 - z) ⊙ n + z ⊙ h(t-1), so its bias is log u.

    Args:
        module: `tt.nn.LSTM`, `GRU` or one of their cells.
        longest: T_max, the longest dependency expected, in time steps; at least 2.
        generator: what to draw from; torch's global one when missing.

    Raises:
        UsageError: a module without such gates or without biases, or `longest` below 2.

    Source: Tallec & Ollivier 2018, section 2.
    """
    if longest < 2:
        raise UsageError(f"chrono_: longest must be at least 2 time steps, got {longest}")
    for parameters in _each(module, who="chrono_"):
        keeping = "f" if "f" in parameters.gates else "z"
        if keeping not in parameters.gates:
            raise UsageError(
                f"chrono_: expected an LSTM, a GRU or one of their cells, got {type(module).__name__}, which has no "
                "gate that keeps its state; use identity_ or orthogonal_"
            )
        like = parameters.weight_hh[parameters.block(keeping), 0].detach()
        bias = torch.empty_like(like).uniform_(1, longest - 1, generator=generator).log()  # (H,)
        _set_bias(parameters, keeping, bias, who="chrono_", module=module)
        if keeping == "f":
            _set_bias(parameters, "i", -bias, who="chrono_", module=module)


def _each(module: nn.Module, *, who: str) -> Iterator[_Parameters]:
    """The parameters of each layer and direction of a built-in cell or of a layer of such cells.

    Raises:
        UsageError: it is neither.
    """
    family = getattr(getattr(module, "cell_type", module), "family", None)
    own = dict(module.named_parameters(recurse=False))
    suffixes = [name.removeprefix("weight_hh") for name in own if re.fullmatch(r"weight_hh(_l\d+(_reverse)?)?", name)]
    if family not in _GATES or not suffixes:
        raise UsageError(
            f"{who}: expected a layer or cell of tt.nn, got {type(module).__name__}; hand in the recurrent layer "
            "itself, and see tt.nn.replace_torch_layers for those of torch.nn"
        )
    for suffix in suffixes:
        biases = (own.get(f"{name}{suffix}") for name in ("bias_ih", "bias_hh"))
        yield _Parameters(_GATES[family], own[f"weight_hh{suffix}"], *biases)


def _set_bias(parameters: _Parameters, gate: str, value: Tensor, *, who: str, module: nn.Module) -> None:
    """Make the two biases of a gate sum to `value`.

    Raises:
        UsageError: there are no biases.
    """
    if parameters.bias_ih is None or parameters.bias_hh is None:
        raise UsageError(f"{who}: {type(module).__name__} has no biases; make it with bias=True")
    rows = parameters.block(gate)
    with torch.no_grad():
        parameters.bias_ih[rows] = value.to(parameters.bias_ih)
        parameters.bias_hh[rows] = 0
