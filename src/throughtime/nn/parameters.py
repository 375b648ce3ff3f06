"""The parameters of a recurrent layer: `torch.nn`'s names, order, shapes and initialisation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from throughtime.cells import initialise
from throughtime.errors import ShapeError
from throughtime.kernels import StepEquations


class StackedParameters(nn.Module, ABC):
    """One cell's parameters for each of several layers, in one or two directions.

    They are named as in `torch.nn`: `weight_hh_l1_reverse` is W of the second layer, backward in time. A kind of layer
    says which parameters its cell has and which equations they enter.
    """

    cell_type: ClassVar[Any]

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int,
        *,
        bias: bool,
        bidirectional: bool,
        proj_size: int,
        layer_norm: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        if input_size < 1:
            raise ShapeError(f"{type(self).__name__}: input_size must be at least 1, got {input_size}")
        self.input_size = input_size
        self.hidden_sizes = _sizes(hidden_size, num_layers, type(self).__name__)
        self.hidden_size = self.hidden_sizes[0] if len(set(self.hidden_sizes)) == 1 else self.hidden_sizes
        self.num_layers = num_layers
        self.bias = bias
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self.layer_norm = layer_norm
        for layer, suffix in self._suffixes():
            shapes = self._parameter_shapes(self._input_size(layer), self.hidden_sizes[layer])
            self._names = frozenset(shapes)
            for name, shape in shapes.items():
                self.register_parameter(name + suffix, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    @abstractmethod
    def _parameter_shapes(self, input_size: int, hidden_size: int) -> Mapping[str, tuple[int, ...]]:
        """Names, without the layer's suffix, and shapes of one layer's parameters in one direction."""

    @abstractmethod
    def _equations(self, weights: Any) -> StepEquations:
        """The cell's equations with the given weights."""

    def reset_parameters(self) -> None:
        """Draw all parameters anew; the same seed gives the values that `torch.nn` draws."""
        named = list(self.named_parameters())
        if len(set(self.hidden_sizes)) == 1:
            initialise(named, self.hidden_sizes[0])
            return
        for layer, size in enumerate(self.hidden_sizes):
            own = [(name, p) for name, p in named if name.removesuffix("_reverse").endswith(f"_l{layer}")]
            initialise(own, size)

    @property
    def directions(self) -> int:
        """2 when bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        """The last axis of the outputs: D · H, or D · P with a projection, of the last layer."""
        return self._output_size(self.num_layers - 1) * self.directions

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters of each layer and direction, in PyTorch's order."""
        names = [name for name, _ in self.named_parameters()]
        return [[getattr(self, n) for n in names if n.endswith(suffix)] for _, suffix in self._suffixes()]

    def flatten_parameters(self) -> None:
        """Nothing to do: weights need no particular place in memory here. Kept for programs that call it."""

    def _suffixes(self) -> list[tuple[int, str]]:
        layers, directions = range(self.num_layers), range(self.directions)
        return [(layer, suffix_of(layer, direction)) for layer in layers for direction in directions]

    def _weights(self, suffix: str) -> Any:
        """The parameters of one layer and direction, None for those that the cell does without."""
        kind, names = self.cell_type.Weights, self._names
        return kind(*[self._parameter(name + suffix) if name in names else None for name in kind._fields])

    def _parameter(self, name: str) -> Tensor:
        # `getattr` gets there by way of a method of `nn.Module`, which each call of a layer would pay for often;
        # what has been made of a parameter (parametrised, pruned) is found by it alone.
        found = self._parameters.get(name)
        return getattr(self, name) if found is None else found

    def _some_weight(self) -> Tensor:
        """One of the parameters, for what they have in common."""
        # Parametrised ones belong to modules of their own, and to look through all modules takes longer.
        own: Any = self._parameters.values()
        found: Tensor = next(iter(own if own else self.parameters()))
        return found

    def _input_size(self, layer: int) -> int:
        return self.input_size if layer == 0 else self._output_size(layer - 1) * self.directions

    def _output_size(self, layer: int) -> int:
        return self.proj_size or self.hidden_sizes[layer]

    def _state_sizes(self, layer: int) -> tuple[int, ...]:
        fields = len(self.cell_type.State._fields)
        return (self._output_size(layer), *(self.hidden_sizes[layer],) * (fields - 1))


def suffix_of(layer: int, direction: int) -> str:
    """What the names of a layer's parameters end with."""
    return f"_l{layer}" + ("_reverse" if direction else "")


def _sizes(hidden_size: int | Sequence[int], num_layers: int, who: str) -> tuple[int, ...]:
    """One hidden size for each layer.

    Raises:
        ShapeError: not as many sizes as layers, or one below 1.
    """
    if num_layers < 1:
        raise ShapeError(f"{who}: num_layers must be at least 1, got {num_layers}")
    sizes = tuple(hidden_size) if isinstance(hidden_size, Sequence) else (hidden_size,) * num_layers
    if len(sizes) != num_layers or any(size < 1 for size in sizes):
        raise ShapeError(f"{who}: hidden_size must be one positive number, or one for each of {num_layers} layers, "
                         f"got {hidden_size!r}")  # fmt: skip
    return sizes
