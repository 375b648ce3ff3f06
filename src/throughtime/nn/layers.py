"""`tt.nn.RNN`, `tt.nn.LSTM` and `tt.nn.GRU`: drop-in for the layers of those names in `torch.nn`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from throughtime.cells import GRUCell, GRUEquations, LSTMCell, LSTMEquations, RNNCell, RNNEquations
from throughtime.errors import UsageError
from throughtime.nn.recurrent import RecurrentLayer


class RNN(RecurrentLayer):
    """h(t) = tanh(b + W h(t-1) + U x(t)), stacked: drop-in for `torch.nn.RNN`.

    `RNN(input_size, hidden_size, num_layers=1, nonlinearity="tanh", bias=True, ...)`, as in PyTorch; the keyword
    extras are described at `RecurrentLayer`.

        >>> import torch, throughtime as tt
        >>> outputs, h_n = tt.nn.RNN(3, 5)(torch.zeros(7, 2, 3), lengths=[7, 4])
        >>> outputs.shape, h_n.shape
        (torch.Size([7, 2, 5]), torch.Size([1, 2, 5]))

    Source: Goodfellow, Bengio & Courville 2016, eqs. 10.8-10.9.
    """

    cell_type = RNNCell
    usual: ClassVar[Mapping[str, Any]] = {"nonlinearity": "tanh", **RecurrentLayer.usual}

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        **extras: Any,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise UsageError(f"RNN: nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
        if extras.get("proj_size"):
            raise UsageError("RNN: proj_size is for LSTM only")
        self.nonlinearity = nonlinearity
        self.mode = f"RNN_{nonlinearity.upper()}"
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
            **extras,
        )

    def _parameter_shapes(self, input_size: int, hidden_size: int) -> Mapping[str, tuple[int, ...]]:
        return RNNCell.parameter_shapes(input_size, hidden_size, bias=self.bias, layer_norm=self.layer_norm)

    def _equations(self, weights: Any) -> RNNEquations:
        return RNNEquations(weights, self.nonlinearity)


class LSTM(RecurrentLayer):
    """c(t) = f ⊙ c(t-1) + i ⊙ g, h(t) = o ⊙ tanh(c(t)), stacked: drop-in for `torch.nn.LSTM`.

    `LSTM(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False,
    proj_size=0, ...)`, as in PyTorch; also `peepholes=True`. The other extras are described at `RecurrentLayer`.

        >>> import torch, throughtime as tt
        >>> lstm = tt.nn.LSTM(3, 5)
        >>> outputs, (h_n, c_n), states = lstm(torch.zeros(7, 2, 3), return_states="all")
        >>> states[0][0].c.shape, states[0][0].gates.f.shape
        (torch.Size([7, 2, 5]), torch.Size([7, 2, 5]))

    Source: Goodfellow, Bengio & Courville 2016, eqs. 10.40-10.44.
    """

    mode = "LSTM"
    cell_type = LSTMCell
    usual: ClassVar[Mapping[str, Any]] = {**RecurrentLayer.usual, "proj_size": 0, "peepholes": False}

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        *,
        peepholes: bool = False,
        **extras: Any,
    ) -> None:
        self.peepholes = peepholes
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
            **extras,
        )

    def _parameter_shapes(self, input_size: int, hidden_size: int) -> Mapping[str, tuple[int, ...]]:
        return LSTMCell.parameter_shapes(
            input_size,
            hidden_size,
            bias=self.bias,
            proj_size=self.proj_size,
            peepholes=self.peepholes,
            layer_norm=self.layer_norm,
        )

    def _equations(self, weights: Any) -> LSTMEquations:
        return LSTMEquations(weights)


class GRU(RecurrentLayer):
    """h(t) = (1 - z) ⊙ n + z ⊙ h(t-1), stacked: drop-in for `torch.nn.GRU`.

    `GRU(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False, ...)`,
    as in PyTorch; also `reset_after=False`, the reset gate before the product. The other extras are described at
    `RecurrentLayer`.

    Source: Goodfellow, Bengio & Courville 2016, eqs. 10.45-10.47; Cho et al. 2014.
    """

    mode = "GRU"
    cell_type = GRUCell
    usual: ClassVar[Mapping[str, Any]] = {**RecurrentLayer.usual, "reset_after": True}

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        reset_after: bool = True,
        **extras: Any,
    ) -> None:
        if extras.get("proj_size"):
            raise UsageError("GRU: proj_size is for LSTM only")
        self.reset_after = reset_after
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
            **extras,
        )

    def _parameter_shapes(self, input_size: int, hidden_size: int) -> Mapping[str, tuple[int, ...]]:
        return GRUCell.parameter_shapes(input_size, hidden_size, bias=self.bias, layer_norm=self.layer_norm)

    def _equations(self, weights: Any) -> GRUEquations:
        return GRUEquations(weights, self.reset_after)
