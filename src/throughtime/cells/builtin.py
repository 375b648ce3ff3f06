"""What the built-in cells share: parameters under PyTorch's names, their initialisation, one step as torch calls it."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from throughtime.cells.cell import Cell
from throughtime.errors import ShapeError
from throughtime.kernels import Recurrence, StepEquations

_TORCH_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


def initialise(parameters: Iterable[tuple[str, Tensor]], hidden_size: int) -> None:
    """Fill a cell's parameters: uniform in ±1/√H as PyTorch does, gains one, shifts zero.

    PyTorch's own parameters are drawn first and in PyTorch's order, so that the same seed gives the same values.
    """
    bound = 1 / math.sqrt(hidden_size)
    parameters = list(parameters)
    with torch.no_grad():
        for name, parameter in sorted(parameters, key=lambda item: not item[0].startswith(_TORCH_NAMES)):
            if name.startswith("gain"):
                parameter.fill_(1)
            elif name.startswith("shift"):
                parameter.zero_()
            else:
                parameter.uniform_(-bound, bound)


def check_dtype(inputs: Tensor, weight: Tensor, *, who: str) -> None:
    """See that inputs are of the weights' type, or that autocast is there to make them so.

    Raises:
        ShapeError: they are not.
    """
    if inputs.dtype != weight.dtype and not torch.is_autocast_enabled(inputs.device.type):
        raise ShapeError(
            f"{who}: inputs must be {weight.dtype} as the weights are, got {inputs.dtype}; "
            f"use inputs.to({weight.dtype})"
        )


def by_torch_names(who: str, inputs: Any, state: Any, given: Mapping[str, Any]) -> tuple[Any, Any]:
    """Inputs and state of a call that names them as PyTorch does, `input` and `hx`.

    Raises:
        TypeError: another name, one given twice, or no inputs, as Python says it of any call.
    """
    for name in given:
        if name not in ("input", "hx"):
            raise TypeError(
                f"{who}: unexpected argument {name!r}; expected inputs, state, lengths, resets, return_states"
            )
    if ("input" in given and inputs is not None) or ("hx" in given and state is not None):
        raise TypeError(f"{who}: inputs or state given twice, under PyTorch's name and ours")
    inputs, state = given.get("input", inputs), given.get("hx", state)
    if inputs is None:
        raise TypeError(f"{who}: no inputs given")
    return inputs, state


class BuiltinCell(Cell):
    """A cell whose equations engines know by heart, with PyTorch's parameter names, order and initialisation."""

    Weights: ClassVar[Any]
    weight_ih: Tensor
    # PyTorch's RNNCell and GRUCell take and return h itself, not a tuple of one.
    bare_state: ClassVar[bool] = False

    def _create(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        self.bias = bias
        for name in self.Weights._fields:
            shape = shapes.get(name)
            empty = None if shape is None else nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.register_parameter(name, empty)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew, as PyTorch would under the same seed."""
        initialise(self.named_parameters(), self.hidden_size)

    def weights(self) -> Any:
        """The parameters of this moment, None for those the cell does without."""
        return self.Weights(*(getattr(self, name) for name in self.Weights._fields))

    @abstractmethod
    def equations(self, weights: Any) -> StepEquations:
        """The cell's equations with the given weights."""

    def bind(self) -> StepEquations:
        """The equations with the weights of this moment."""
        return self.equations(self.weights())

    def step(self, projected: Tensor, state: Any) -> Any:
        """One time step from `projected`, what `project_inputs` made of x(t)."""
        return self.bind().advance(projected, state, None)[0]

    def project_inputs(self, inputs: Tensor) -> Tensor:
        """All that x contributes, for every step at once."""
        return self.bind().project_inputs(inputs)

    def recurrence(self, inputs: Float[Tensor, "T B I"], state: Any = None, **options: Any) -> Recurrence:
        """The cell over the steps of `inputs`, from `state` or zeros.

        Raises:
            ShapeError: inputs or state that do not fit.
        """
        check_dtype(inputs, self.weight_ih, who=type(self).__name__)
        return super().recurrence(inputs, state, **options)

    def forward(self, inputs: Tensor | None = None, state: Any = None, **torch_names: Any) -> Any:
        """One step, called and answered as by the `torch.nn` cell of the same name; `input=` and `hx=` are its names.

        Raises:
            ShapeError: inputs or state that do not fit.
        """
        if torch_names or inputs is None:
            inputs, state = by_torch_names(type(self).__name__, inputs, state, torch_names)
        check_dtype(inputs, self.weight_ih, who=type(self).__name__)
        after = super().forward(inputs, state)
        return after[0] if self.bare_state else after

    def extra_repr(self) -> str:
        """The sizes, and what differs from the defaults."""
        return f"{self.input_size}, {self.hidden_size}" + ("" if self.bias else ", bias=False")
