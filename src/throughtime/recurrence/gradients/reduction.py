"""What is kept of each of many gradients: the whole, its norm, or its projection on a direction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from throughtime.errors import ShapeError, UsageError
from throughtime.recurrence.gradients.factors import Factors

Reduce = str | Mapping[str, Tensor]


class Reduction:
    """Gathers N gradients of each parameter of a layer, as factors or one by one, and keeps of them what was asked for.

    `each` is what a gradient is of, "steps" or "sequences"; `found` is by the parameters' names.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], reduce: Reduce, each: str, *, max_bytes: int, who: str
    ) -> None:
        self._parameters = parameters
        self._directions = _checked(reduce, parameters, who=who)
        self._whole = reduce == "full"
        self._each, self._max_bytes, self._who = each, max_bytes, who
        self.found: dict[str, Tensor] = {}

    def expect(self, count: int) -> None:
        """N, before anything is taken.

        Raises:
            UsageError: so many gradients are larger than `max_bytes`.
        """
        if self.found:
            return
        if self._whole:
            self._check_size(count)
        for name in self._parameters if self._directions is None else self._directions:
            parameter = self._parameters[name]
            self.found[name] = parameter.new_zeros((count, *parameter.shape) if self._whole else (count,))

    def _check_size(self, count: int) -> None:
        size = count * sum(parameter.nbytes for parameter in self._parameters.values())
        if size > self._max_bytes:
            raise UsageError(
                f"{self._who}: whole gradients of {count} {self._each} take {size / 2**30:.1f} GiB, more than "
                f"max_bytes={self._max_bytes / 2**30:.1f} GiB; take reduce='norm' or directions, or a larger max_bytes"
            )

    def take_factors(self, name: str, factors: Factors) -> None:
        """All gradients of a parameter at once."""
        if name not in self.found:
            return
        if self._directions is not None:
            found = factors.projections(self._directions[name].to(factors.products[0].left.dtype))
        else:
            found = factors.full() if self._whole else factors.squared_norms().sqrt()
        self.found[name] = found

    def take(self, index: int, name: str, gradient: Tensor) -> None:
        """Gradient `index` of a parameter."""
        if name not in self.found:
            return
        if self._directions is not None:
            gradient = (gradient * self._directions[name]).sum()
        elif not self._whole:
            gradient = torch.linalg.vector_norm(gradient)
        self.found[name][index] = gradient


def _checked(reduce: Any, parameters: Mapping[str, Tensor], *, who: str) -> Mapping[str, Tensor] | None:
    """The directions, None where whole gradients or norms are wanted.

    Raises:
        UsageError: no such reduction, or a direction for no parameter.
        ShapeError: a direction that is not of its parameter's shape.
    """
    if isinstance(reduce, str) and reduce in ("full", "norm"):
        return None
    if not isinstance(reduce, Mapping):
        raise UsageError(
            f"{who}: reduce must be 'full', 'norm' or a direction for each of some parameters, got {reduce!r}"
        )
    for name, direction in reduce.items():
        if name not in parameters:
            raise UsageError(f"{who}: reduce has a direction for {name!r}, expected one of {', '.join(parameters)}")
        if not isinstance(direction, Tensor) or direction.shape != parameters[name].shape:
            got = tuple(direction.shape) if isinstance(direction, Tensor) else type(direction).__name__
            raise ShapeError(
                f"{who}: the direction for {name} must be {tuple(parameters[name].shape)}, the parameter's shape, "
                f"got {got}"
            )
    return reduce
