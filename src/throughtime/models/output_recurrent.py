"""Design B: recurrent connections from the output to the hidden units alone (fig. 10.4).

    h(t) = tanh(b + W y(t-1) + U x(t))

The network's own output stands in for y(t-1) when it runs freely. No h(t-1) enters: all that a step knows of the past
is y(t-1). So the design is weaker than A, but with teacher forcing its time steps are decoupled: each is a training
example of its own, and all of them are computed at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from throughtime.cells import check_dtype
from throughtime.layers.outputs import Categorical, Gaussian
from throughtime.models import decoupled
from throughtime.models.conditional_recurrent import ConditionalRecurrent, ConditionalRecurrentConfig
from throughtime.models.feedback import Prepared, Run
from throughtime.nn import RNN, RecurrentLayer


class OutputRecurrent(ConditionalRecurrent):
    """p(y | x) = Π_t p(y(t) | y(t-1), x(t)), the hidden units without recurrence of their own: design B.

    The arguments and calls are those of `ConditionalRecurrent`. A layer is one step of its cell from a state of zeros:
    an rnn, lstm or gru has no `weight_hh` here, that of another cell is there and without effect. W of the equation
    above is the part of `weight_ih` that reads y(t-1).

        >>> import torch, throughtime as tt
        >>> model = tt.models.OutputRecurrent(input_size=3, output_size=5, cell="rnn", hidden_size=8)
        >>> model(torch.zeros(7, 2, 3), targets=torch.zeros(7, 2, dtype=torch.int64)).shape
        torch.Size([7, 2])

    Source: Goodfellow, Bengio & Courville 2016, section 10.2.1, fig. 10.4.
    """

    def __init__(self, config: ConditionalRecurrentConfig | None = None, **keys: Any) -> None:
        super().__init__(config, **keys)
        if isinstance(self.recurrent, RecurrentLayer):
            self._without_hidden_recurrence(self.recurrent)

    @staticmethod
    def _without_hidden_recurrence(layers: RecurrentLayer) -> None:
        """Put one column of zeros where the equations want W, which the state of zeros needs no more of."""
        for name in [name for name, _ in layers.named_parameters() if name.startswith("weight_hh")]:
            gates = len(getattr(layers, name))
            delattr(layers, name)
            layers.register_buffer(name, torch.zeros(gates, 1), persistent=False)

    def first_states(self, like: Tensor) -> list[Any]:
        """None: between the steps there is only the output."""
        return []

    def advance(self, x: Tensor, states: Sequence[Any]) -> tuple[Tensor, list[Any]]:
        """h(t) of any number of steps (N, X), each from a state of zeros."""
        return self._from_rest(x, len(x)), []

    def _from_rest(self, x: Tensor, rows: int) -> Tensor:
        """h(t) of steps (N, X), each from the state before a first one; that of one row may stand for all."""
        rest = self.recurrent.zero_states(rows, x)
        if isinstance(self.recurrent, RecurrentLayer):
            rest = [type(state)(*(field[:, :1] for field in state)) for state in rest]
        return super().advance(x, rest)[0]

    def _taught_losses(self, sequences: Prepared) -> Float[Tensor, "T B"]:
        """The losses of all steps, where one native pass can compute them and their gradients."""
        x, targets = sequences.external, sequences.targets
        if not isinstance(self.distribution, Categorical | Gaussian) or not self._is_plain():
            return super()._taught_losses(sequences)
        weights = self._weights(x)
        if not decoupled.takes_losses(x, targets, *weights, engine=self.config.engine):
            return super()._taught_losses(sequences)

        def otherwise(*weights: Tensor) -> Tensor:
            return self.losses(sequences, self._at_once(torch.cat([x, self._fed(targets)], -1), weights))

        return decoupled.taught_losses(x, targets, sequences.inside, *weights, otherwise=otherwise)

    def _forced(self, x: Tensor, sequences: Prepared) -> Run:
        """All steps of all sequences at once: with y(t-1) known, none waits for another."""
        if self._is_plain():
            return self._at_once(x, self._weights(x))
        # A built-in cell adds its zeros to all rows, however many there are; a cell of one's own may not.
        flat = x.flatten(0, 1)  # (T · B, X)
        h = self._from_rest(flat, 1 if isinstance(self.recurrent, RecurrentLayer) else len(flat))
        return self._as_run(x, self.readout(self.dropout(h)), h)

    def _weights(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """U, b, V and c of a plain network, for inputs of their dtype."""
        check_dtype(x, self.readout.weight_ho, who=type(self).__name__)
        weights = self.recurrent.step_equations()[0].weights  # type: ignore[attr-defined]
        return weights.weight_ih, weights.bias_ih + weights.bias_hh, self.readout.weight_ho, self.readout.bias_ho

    def _at_once(self, x: Tensor, weights: tuple[Tensor, ...]) -> Run:
        o, h = decoupled.tanh_and_readout(x.flatten(0, 1), *weights, engine=self.config.engine)
        return self._as_run(x, o, h)

    @staticmethod
    def _as_run(x: Tensor, o: Tensor, h: Tensor) -> Run:
        return Run(o.reshape(*x.shape[:2], o.shape[-1]), h.reshape(*x.shape[:2], h.shape[-1]))

    def _is_plain(self) -> bool:
        """Whether the network is one layer of tanh units and a readout, nothing dropped between them."""
        dropped = self.training and self.config.dropout > 0
        autocast = torch.is_autocast_enabled(self.readout.bias_ho.device.type)
        return isinstance(self.recurrent, RNN) and self.recurrent.nonlinearity == "tanh" \
            and self.recurrent.num_layers == 1 and not dropped and not autocast  # fmt: skip
