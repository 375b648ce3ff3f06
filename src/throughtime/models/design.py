"""What the designs of chapter 10 share: their configuration, recurrent layers of any cell, outputs and probability."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from throughtime.cells import CELL_KINDS, Cell, cell_kind
from throughtime.cells.initialisation import chrono_, identity_, orthogonal_, unit_forget_bias_
from throughtime.configuration import Section, validate
from throughtime.errors import ShapeError, UsageError
from throughtime.layers import Readout, output_distribution
from throughtime.models.model import Model
from throughtime.nn import GRU, LSTM, RNN, CellStack, RecurrentLayer
from throughtime.recurrence import checked_lengths

CellFactory = Callable[[int, int], Cell]


class DesignConfig(Section):
    """What every design has: outputs, a cell, layers."""

    output: Literal["categorical", "bernoulli", "gaussian", "learned_gaussian", "mixture_density"] = Field(
        "categorical", description="the distribution of y(t) that o(t) are the parameters of"
    )
    output_size: int = Field(ge=1, description="categories, or numbers in y(t)")
    mixture_components: int = Field(5, ge=1, description="mixture_density: Gaussians in the mixture")
    cell: str = Field("lstm", description="recurrent cell: rnn, lstm, gru, leaky, skip, deep_transition; or one's own")
    nonlinearity: Literal["tanh", "relu"] = Field("tanh", description='of the cell "rnn"')
    initialisation: Literal["usual", "orthogonal", "identity", "chrono"] = Field(
        "usual",
        description="of the recurrence: as torch's layers, with an LSTM's forget gates open (usual); or orthogonal; "
        "identity (rnn; with relu, the IRNN); chrono (lstm, gru)",
    )
    longest_lag: int = Field(100, ge=3, description="chrono: the longest dependency expected, in steps")
    hidden_size: int = Field(128, ge=1, description="units of each layer")
    num_layers: int = Field(1, ge=1, description="recurrent layers")
    dropout: float = Field(0.0, ge=0, lt=1, description="probability: of each layer's outputs, anew at each step")
    residual: bool = Field(False, description="add each layer's inputs to its outputs, from the second layer on")
    engine: str = Field("auto", description='engine of the recurrence: "auto" or the name of one')

    @model_validator(mode="after")
    def _of_the_cell(self) -> DesignConfig:
        if self.nonlinearity != "tanh" and self.cell != "rnn":
            raise ValueError(f'nonlinearity is for cell "rnn", got cell {self.cell!r}')
        allowed = {"orthogonal": ("rnn", "lstm", "gru"), "identity": ("rnn",), "chrono": ("lstm", "gru")}
        if self.initialisation != "usual" and self.cell not in allowed[self.initialisation]:
            cells = ", ".join(allowed[self.initialisation])
            raise ValueError(f"initialisation {self.initialisation!r} is for cells {cells}, got cell {self.cell!r}")
        return self


class Design(Model):
    """A recurrent network with a distribution over its outputs.

    A cell of one's own is handed over as a class, or anything that makes a cell of (input_size, hidden_size), and again
    when a saved model is loaded: `HiddenRecurrent(..., cell=MyCell)`, `HiddenRecurrent.load(folder, cell=MyCell)`.

    Raises:
        ConfigError: unknown keys or values out of range, all at once.
        UsageError: the configuration names a cell of one's own, and its class is not given.
    """

    Config: ClassVar[type[DesignConfig]]

    def __init__(
        self, config: DesignConfig | None = None, *, cell: str | CellFactory | None = None, **keys: Any
    ) -> None:
        who = type(self).__name__
        if config is not None and not isinstance(config, self.Config):
            raise UsageError(f"{who}: expected keywords such as output_size=10, got {config!r}")
        own = cell if cell is not None and not isinstance(cell, str) else None
        if own is not None:
            _check_own_cell(own, who=who)
        if cell is not None and config is None:
            keys["cell"] = _name_of(own) if own is not None else cell
        super().__init__(config if config is not None else validate(self.Config, keys, where=who))
        if own is None and self.config.cell not in CELL_KINDS:
            near = difflib.get_close_matches(self.config.cell.lower(), CELL_KINDS, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else "of a cell of your own give the class, to load() too"
            raise UsageError(
                f"{who}: cell must be one of {', '.join(CELL_KINDS)}, or a class handed over, got the name "
                f"{self.config.cell!r}; {remedy}"
            )
        self.distribution = output_distribution(
            self.config.output, self.config.output_size, components=self.config.mixture_components
        )
        self._own_cell = own

    @classmethod
    def load(cls, folder: str | Path, *, cell: CellFactory | None = None) -> Self:
        """The model that was saved to `folder`, on the CPU, in evaluation mode; `cell` where it is one's own.

        Raises:
            RunFolderError, CheckpointError: see `Model.load`.
            UsageError: the cell is one's own, and not given.
        """
        return cls._load(folder, cell=cell)

    # -- parts that designs are made of --------------------------------------------------------------------------------

    def _recurrent_layers(self, input_size: int, *, bidirectional: bool = False) -> RecurrentLayer | CellStack:
        """The layers that the configuration asks for, over inputs of that size."""
        config = self.config
        common: dict[str, Any] = {
            "dropout": config.dropout if config.num_layers > 1 else 0.0,
            "residual": config.residual,
            "engine": config.engine,
        }
        torch_kinds: dict[str, Any] = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
        if self._own_cell is None and config.cell in torch_kinds:
            if config.cell == "rnn":
                common["nonlinearity"] = config.nonlinearity
            kind = torch_kinds[config.cell]
            layer = kind(input_size, config.hidden_size, config.num_layers, bidirectional=bidirectional, **common)
            self._initialise(layer)
            return layer  # type: ignore[no-any-return]
        make = self._own_cell or cell_kind(config.cell)
        width = config.hidden_size * (2 if bidirectional else 1)
        sizes = [input_size] + [width] * (config.num_layers - 1)
        forward = [make(size, config.hidden_size) for size in sizes]
        backward = [make(size, config.hidden_size) for size in sizes] if bidirectional else None
        return CellStack(forward, backward=backward, **common)

    def _initialise(self, layers: RecurrentLayer) -> None:
        kind = self.config.initialisation
        if self.config.cell == "lstm" and kind != "chrono":
            unit_forget_bias_(layers)
        if kind == "orthogonal":
            orthogonal_(layers)
        elif kind == "identity":
            identity_(layers)
        elif kind == "chrono":
            chrono_(layers, self.config.longest_lag)

    def _readout(self, hidden_size: int, extra: int = 0) -> Readout:
        """V: from h(t) to o(t), and to `extra` outputs behind them."""
        return Readout(hidden_size, self.distribution.size + extra)

    def read_inputs(
        self, inputs: Tensor | None, lengths: Int[Tensor, " B"] | Sequence[int] | None = None
    ) -> tuple[Float[Tensor, "T B I"], Tensor | None, Tensor | None]:
        """x(1..τ) as numbers, categories one-hot, zeros behind a length; the lengths, and true (T, B) within them.

        Raises:
            ShapeError: neither (T, B, input_size) nor categories (T, B) below it; lengths that do not fit.
        """
        who, size = type(self).__name__, self.config.input_size
        if inputs is None:
            raise ShapeError(f"{who}: inputs must be (T, B, {size}), or int64 categories (T, B), got None")
        categories = inputs.dim() == 2 and inputs.dtype == torch.int64
        if not categories and (inputs.dim() != 3 or inputs.shape[2] != size or not inputs.is_floating_point()):
            raise ShapeError(
                f"{who}: inputs must be (T, B, {size}), or int64 categories (T, B), got {inputs.dtype} "
                f"{tuple(inputs.shape)}; time comes first"
            )
        checked, inside = inside_lengths(lengths, inputs, who=who)
        inputs = self._padded(inputs, inside)
        if not categories:
            return inputs, checked, inside
        if inputs.numel() and not 0 <= int(inputs.min()) <= int(inputs.max()) < size:
            raise ShapeError(
                f"{who}: inputs must be categories in 0..{size - 1}, got {int(inputs.min())}..{int(inputs.max())}"
            )
        x = functional.one_hot(inputs, size).to(self._dtype())
        return x if inside is None else x * inside[..., None], checked, inside

    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _checked_targets(self, targets: Tensor, x: Tensor, inside: Tensor | None) -> Tensor:
        """A target for each input, with zeros behind each length.

        Raises:
            ShapeError: more or fewer targets than inputs, of another kind than the outputs, or out of their range.
        """
        who, steps = type(self).__name__, len(x)
        if targets.dim() >= 2 and targets.shape[0] != steps:
            raise ShapeError(
                f"{who}: targets must have as many steps as the inputs, {steps}, got {targets.shape[0]}; "
                "a design whose output is as long as it likes is ContextToSequence"
            )
        o = torch.empty(*x.shape[:2], self.distribution.size, device="meta")
        self.distribution.check(targets, o, who=who)
        targets = self._padded(targets, inside)
        self._check_range(targets)
        return targets

    def _check_range(self, targets: Tensor) -> None:
        """See that categories are those that the design has, and binary values 0 or 1.

        Raises:
            ShapeError: one is not.
        """
        last = self.config.output_size - 1
        if self.config.output == "bernoulli" and bool(((targets != 0) & (targets != 1)).any()):
            wrong = targets[(targets != 0) & (targets != 1)][0]
            raise ShapeError(
                f"{type(self).__name__}: targets must be 0 or 1 where outputs are bernoulli, got {wrong:g}"
            )
        if self.config.output != "categorical" or not targets.numel():
            return
        if not 0 <= int(targets.min()) <= int(targets.max()) <= last:
            raise ShapeError(
                f"{type(self).__name__}: targets must be categories in 0..{last}, got {int(targets.min())}.."
                f"{int(targets.max())}; an end symbol is the model's to add"
            )

    @staticmethod
    def _padded(targets: Tensor, inside: Tensor | None) -> Tensor:
        """Targets with zeros behind each length, whatever stood there."""
        if inside is None:
            return targets
        return torch.where(inside.reshape(*inside.shape, *[1] * (targets.dim() - 2)), targets, 0)

    def _step_log_prob(self, o: Tensor, targets: Tensor, inside: Tensor | None) -> Float[Tensor, "T B"]:
        """log p(y(t) | o(t)) in nats, zero where not `inside`; targets are checked ones."""
        log_p = self.distribution.log_prob(o, targets)
        return log_p if inside is None else torch.where(inside, log_p, 0.0)


def _check_own_cell(cell: Any, *, who: str) -> None:
    """See that a cell of one's own is what makes cells, and has a name of its own.

    Raises:
        UsageError: a cell instead of its class, or one called as a built-in cell is.
    """
    if isinstance(cell, nn.Module) or not callable(cell):
        raise UsageError(
            f"{who}: cell must be a class, or what makes a cell of (input_size, hidden_size), got "
            f"{type(cell).__name__}; each layer gets a cell of its own"
        )
    if _name_of(cell) in CELL_KINDS:
        raise UsageError(
            f"{who}: a cell of one's own must not be called {_name_of(cell)!r}, as a built-in one is; give it another "
            "name, by which a saved model can say what it needs"
        )


def _name_of(cell: Any) -> str:
    """By what name a configuration remembers a cell of one's own."""
    name = getattr(cell, "__name__", "")
    return name if name.isidentifier() else "custom"


def inside_lengths(
    lengths: Int[Tensor, " B"] | Sequence[int] | None, like: Tensor, *, who: str
) -> tuple[Tensor | None, Tensor | None]:
    """The lengths (B,), checked, and true (T, B) at the steps within them."""
    checked = checked_lengths(lengths, like, who=who)
    if checked is None:
        return None, None
    return checked, torch.arange(len(like), device=like.device)[:, None] < checked  # (T, B)
