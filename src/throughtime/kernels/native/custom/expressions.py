"""Pointwise expressions over units: what a traced step is taken apart into."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# The program's operations, in the order of the C++ enumeration `Op` of pointwise.hpp.
OPERATIONS = (
    "copy", "add", "sub", "mul", "div", "neg", "mul_add", "neg_mul_add", "tanh", "sigmoid", "tanh_sum", "sigmoid_sum",
    "d_tanh", "d_sigmoid", "relu", "exp", "log", "log1p", "expm1", "sqrt", "abs", "sin", "cos", "erf", "less",
    "less_equal", "equal", "not_equal", "where", "minimum", "maximum",
)  # fmt: skip
NUMBERS = {name: number for number, name in enumerate(OPERATIONS)}

# What costs more to compute again than to load.
COSTLY = {"tanh", "sigmoid", "exp", "log", "log1p", "expm1", "sin", "cos", "erf"}


class Value:
    """One value per unit and row: a leaf (`detail` says which) or an operation on other values. Each is itself only."""

    __slots__ = ("arguments", "detail", "number", "operation", "width")

    def __init__(self, operation: str, arguments: tuple[Value, ...], detail: Any, width: int, number: int) -> None:
        self.operation = operation
        self.arguments = arguments
        self.detail = detail
        self.width = width
        self.number = number

    @property
    def is_operation(self) -> bool:
        """Whether the program computes it, rather than finding it somewhere."""
        return self.operation in NUMBERS


class Expressions:
    """Makes values; equal ones are made once. Arguments come before what is made of them (`number`)."""

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], Value] = {}

    @property
    def count(self) -> int:
        """How many values there are."""
        return len(self._made)

    def leaf(self, operation: str, detail: Any, width: int, arguments: tuple[Value, ...] = ()) -> Value:
        """A value that stands somewhere: an input, a field of the state, a product's gate, ..."""
        return self._make(operation, arguments, detail, width)

    def constant(self, value: float | int, width: int) -> Value:
        """The same number for all units."""
        return self._make("constant", (), float(value), width)

    def apply(self, operation: str, *arguments: Value) -> Value:
        """An operation on values of one width, simplified where that changes no result."""
        a, b = arguments[0], arguments[1] if len(arguments) > 1 else None
        width = a.width
        if operation in ("add", "sub", "mul", "div", "neg") and all(v.operation == "constant" for v in arguments):
            return self.constant(_FOLDED[operation](*(v.detail for v in arguments)), width)
        if operation == "add" and _is(a, 0.0):
            return arguments[1]
        if operation == "mul" and _is(a, 1.0):
            return arguments[1]
        if (operation in ("add", "sub") and _is(b, 0.0)) or (operation in ("mul", "div") and _is(b, 1.0)):
            return a
        if operation == "sub" and _is(a, 0.0):
            return self.apply("neg", arguments[1])
        if operation == "mul" and _is(a, -1.0):
            return self.apply("neg", arguments[1])
        if operation == "mul" and _is(b, -1.0):
            return self.apply("neg", a)
        if operation == "add" and arguments[1].operation == "neg":
            return self.apply("sub", a, arguments[1].arguments[0])
        if operation == "sub" and arguments[1].operation == "neg":
            return self.apply("add", a, arguments[1].arguments[0])
        if operation in ("add", "mul") and arguments[0].number > arguments[1].number:
            arguments = (arguments[1], arguments[0])
        return self._make(operation, arguments, None, width)

    def _make(self, operation: str, arguments: tuple[Value, ...], detail: Any, width: int) -> Value:
        key = (operation, tuple(a.number for a in arguments), detail, width)
        if key not in self._made:
            self._made[key] = Value(operation, arguments, detail, width, len(self._made))
        return self._made[key]


_FOLDED: dict[str, Callable[..., float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b if b else float("nan") if a == 0 or a != a else a * float("inf"),
    "neg": lambda a: -a,
}


def _is(value: Value | None, number: float | int) -> bool:
    return value is not None and value.operation == "constant" and value.detail == number


def reachable(wanted: Iterable[Value]) -> list[Value]:
    """`wanted` and all they are made of, arguments first."""
    found: dict[int, Value] = {}
    left = list(wanted)
    while left:
        value = left.pop()
        if value.number not in found:
            found[value.number] = value
            left.extend(value.arguments)
    return [found[number] for number in sorted(found)]


_IN_TORCH: dict[str, Callable[..., Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "neg": torch.neg, "tanh": torch.tanh,
    "sigmoid": torch.sigmoid, "relu": torch.relu, "exp": torch.exp, "log": torch.log, "log1p": torch.log1p,
    "expm1": torch.expm1, "sqrt": torch.sqrt, "abs": torch.abs, "sin": torch.sin, "cos": torch.cos, "erf": torch.erf,
    "less": torch.lt, "less_equal": torch.le, "equal": torch.eq, "not_equal": torch.ne, "minimum": torch.minimum,
    "maximum": torch.maximum, "copy": torch.clone,
}  # fmt: skip


def evaluate(wanted: list[Value], leaf: Callable[[Value], Tensor], like: Tensor) -> list[Tensor]:
    """The values in plain torch, differentiably; `leaf` gives the leaves, `like` the type of constants."""
    found: dict[int, Tensor] = {}
    for value in reachable(wanted):
        arguments = [found[a.number] for a in value.arguments]
        if value.operation == "constant":
            result = like.new_tensor(value.detail)
        elif value.operation == "detached":
            result = arguments[0].detach()
        elif value.operation == "gate":
            result = functional.linear(torch.cat(arguments, -1), leaf(value))  # leaf: the gate's rows of the weight
        elif value.operation == "where":
            result = torch.where(arguments[0] != 0, arguments[1], arguments[2])
        elif value.is_operation:
            result = _IN_TORCH[value.operation](*arguments).to(like.dtype)
        else:
            result = leaf(value)
        found[value.number] = result
    return [found[value.number] for value in wanted]
