"""The vector-Jacobian product of a lowered step: one step of back-propagation through time, as expressions.

Leaves beyond those of the forward step: "d_output" and "d_carried" (detail: field), what reaches a field after the step
from the outputs and, other than through products, from the step after it; "d_carried_operand" and "d_operand" (detail:
product, position), the gradient of a product's operand at the step after this one and at this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from throughtime.kernels.native.custom.expressions import Expressions, Value, reachable


@dataclass(frozen=True)
class Product:
    """All gates of one width with the same operand: one matrix."""

    gates: tuple[Value, ...]

    @property
    def operand(self) -> tuple[Value, ...]:
        """The segments of v, one after another."""
        return self.gates[0].arguments

    @property
    def units(self) -> int:
        """The width of a gate."""
        return self.gates[0].width

    @property
    def depth(self) -> int:
        """The width of the operand."""
        return sum(segment.width for segment in self.operand)

    def positions(self) -> list[tuple[Value, int]]:
        """The segments and where each begins."""
        found, at = [], 0
        for segment in self.operand:
            found.append((segment, at))
            at += segment.width
        return found


def products_of(fields: list[Value]) -> list[Product]:
    """The products that the fields need, in an order in which they can be computed."""
    grouped: dict[tuple[int, ...], list[Value]] = {}
    for value in reachable(fields):
        if value.operation == "gate":
            grouped.setdefault((value.width, *(v.number for v in value.arguments)), []).append(value)
    return [Product(tuple(sorted(gates, key=_by_rows))) for gates in grouped.values()]


def _by_rows(gate: Value) -> tuple[int, int]:
    return gate.detail.node, gate.detail.begin


def differentiate(e: Expressions, fields: list[Value], products: list[Product]) -> dict[int, Value]:
    """The gradient of each value that has one, by the value's number."""
    gradients: dict[int, Value] = {}

    def add(value: Value, gradient: Value) -> None:
        known = gradients.get(value.number)
        gradients[value.number] = gradient if known is None else e.apply("add", known, gradient)

    for number, after in enumerate(fields):
        add(after, _arriving(e, number, after.width, products))
    # Where a value is part of an operand, and its products are done: their gates come behind it.
    for value in reversed(reachable(fields)):
        for q, product in enumerate(products):
            if value.operation == "state" or not any(gate.number in gradients for gate in product.gates):
                continue
            for segment, position in product.positions():
                if segment is value:
                    add(value, e.leaf("d_operand", (q, position), value.width))
        if value.number in gradients and value.operation in _RULES:
            _RULES[value.operation](e, value, gradients[value.number], add)
    return gradients


def _arriving(e: Expressions, number: int, width: int, products: list[Product]) -> Value:
    """All that reaches a field of the state after the step."""
    total = e.apply("add", e.leaf("d_carried", number, width), e.leaf("d_output", number, width))
    for q, product in enumerate(products):
        for segment, position in product.positions():
            if segment.operation == "state" and segment.detail == number:
                total = e.apply("add", total, e.leaf("d_carried_operand", (q, position), width))
    return total


Add = Callable[[Value, Value], None]
Rule = Callable[[Expressions, Value, Value, Add], None]


def _add(e: Expressions, v: Value, g: Value, add: Add) -> None:
    for argument in v.arguments:
        add(argument, g)


def _sub(e: Expressions, v: Value, g: Value, add: Add) -> None:
    add(v.arguments[0], g)
    add(v.arguments[1], e.apply("neg", g))


def _mul(e: Expressions, v: Value, g: Value, add: Add) -> None:
    a, b = v.arguments
    add(a, e.apply("mul", g, b))
    add(b, e.apply("mul", g, a))


def _div(e: Expressions, v: Value, g: Value, add: Add) -> None:
    a, b = v.arguments
    add(a, e.apply("div", g, b))
    if b.operation != "constant":
        add(b, e.apply("neg", e.apply("div", e.apply("mul", g, v), b)))


def _where(e: Expressions, v: Value, g: Value, add: Add) -> None:
    condition, yes, no = v.arguments
    zero = e.constant(0, v.width)
    add(yes, e.apply("where", condition, g, zero))
    add(no, e.apply("where", condition, zero, g))


def _extreme(e: Expressions, v: Value, g: Value, add: Add) -> None:
    # Between equals PyTorch gives each a half.
    a, b = v.arguments
    half, zero = e.apply("mul", g, e.constant(0.5, v.width)), e.constant(0, v.width)
    first = e.apply("less", a, b) if v.operation == "minimum" else e.apply("less", b, a)
    second = e.apply("less", b, a) if v.operation == "minimum" else e.apply("less", a, b)
    equal = e.apply("equal", a, b)
    add(a, e.apply("where", equal, half, e.apply("where", first, g, zero)))
    add(b, e.apply("where", equal, half, e.apply("where", second, g, zero)))


def _relu(e: Expressions, v: Value, g: Value, add: Add) -> None:
    zero = e.constant(0, v.width)
    add(v.arguments[0], e.apply("where", e.apply("less", zero, v), g, zero))


def _abs(e: Expressions, v: Value, g: Value, add: Add) -> None:
    a, zero = v.arguments[0], e.constant(0, v.width)
    negative = e.apply("where", e.apply("less", a, zero), e.apply("neg", g), zero)
    add(a, e.apply("where", e.apply("less", zero, a), g, negative))


def _one(gradient: Callable[[Expressions, Value, Value], Value]) -> Rule:
    """The rule of a function of one argument: its argument's gradient from the builder, the result and the gradient."""
    return lambda e, v, g, add: add(v.arguments[0], gradient(e, v, g))


# Comparisons have no gradient, and leaves none to pass on.
_RULES: dict[str, Rule] = {
    "add": _add, "sub": _sub, "mul": _mul, "div": _div, "where": _where, "minimum": _extreme, "maximum": _extreme,
    "relu": _relu, "abs": _abs,
    "neg": _one(lambda e, v, g: e.apply("neg", g)),
    "tanh": _one(lambda e, v, g: e.apply("d_tanh", g, v)),
    "sigmoid": _one(lambda e, v, g: e.apply("d_sigmoid", g, v)),
    "exp": _one(lambda e, v, g: e.apply("mul", g, v)),
    "expm1": _one(lambda e, v, g: e.apply("mul", g, e.apply("add", v, e.constant(1, v.width)))),
    "log": _one(lambda e, v, g: e.apply("div", g, v.arguments[0])),
    "log1p": _one(lambda e, v, g: e.apply("div", g, e.apply("add", v.arguments[0], e.constant(1, v.width)))),
    "sqrt": _one(lambda e, v, g: e.apply("div", g, e.apply("mul", v, e.constant(2, v.width)))),
    "sin": _one(lambda e, v, g: e.apply("mul", g, e.apply("cos", v.arguments[0]))),
    "cos": _one(lambda e, v, g: e.apply("neg", e.apply("mul", g, e.apply("sin", v.arguments[0])))),
    "erf": _one(lambda e, v, g: e.apply("mul", g, e.apply(
        "mul", e.apply("exp", e.apply("neg", e.apply("mul", v.arguments[0], v.arguments[0]))),
        e.constant(1.1283791670955126, v.width),  # 2/√π
    ))),
}  # fmt: skip
