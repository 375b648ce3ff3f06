"""PyTorch's pointwise operations as expressions.

Each is given the builder, the width, and PyTorch's own arguments, tensors among them as values.
"""

from __future__ import annotations

import math
from typing import Any

from throughtime.kernels.native.custom.expressions import Expressions, Value
from throughtime.kernels.native.custom.tracing import Untraceable


def _of(e: Expressions, width: int, given: Any) -> Value:
    return given if isinstance(given, Value) else e.constant(given, width)


def _plain(operation: str) -> Any:
    def build(e: Expressions, width: int, *given: Any, **options: Any) -> Value:
        if options:
            raise Untraceable(f"step() calls {operation} with {', '.join(options)}")
        return e.apply(operation, *(_of(e, width, g) for g in given))

    return build


def _sum(operation: str) -> Any:
    def build(e: Expressions, width: int, a: Any, b: Any, alpha: Any = 1) -> Value:
        return e.apply(operation, _of(e, width, a), e.apply("mul", _of(e, width, b), e.constant(alpha, width)))

    return build


def _reversed_sub(e: Expressions, width: int, a: Any, b: Any, alpha: Any = 1) -> Value:
    return e.apply("sub", _of(e, width, b), e.apply("mul", _of(e, width, a), e.constant(alpha, width)))


def _divide(e: Expressions, width: int, a: Any, b: Any, rounding_mode: Any = None) -> Value:
    if rounding_mode is not None:
        raise Untraceable("step() divides with a rounding mode, which has no gradient")
    return e.apply("div", _of(e, width, a), _of(e, width, b))


def _swapped(operation: str) -> Any:
    return lambda e, width, a, b: e.apply(operation, _of(e, width, b), _of(e, width, a))


def _power(e: Expressions, width: int, a: Any, exponent: Any) -> Value:
    if not isinstance(a, Value):
        raise Untraceable("step() raises a number to a tensor's power; write exp(x · log(a))")
    if exponent == 0.5:
        return e.apply("sqrt", a)
    if exponent in (1, 2, 3):
        square = e.apply("mul", a, a)
        return a if exponent == 1 else square if exponent == 2 else e.apply("mul", square, a)
    if exponent in (-1, -2):
        return e.apply("div", e.constant(1, width), a if exponent == -1 else e.apply("mul", a, a))
    raise Untraceable(f"step() raises to the power {exponent}; 0.5, 1, 2, 3, -1 and -2 are known")


def _at_least(e: Expressions, width: int, a: Any, low: Any) -> Value:
    bound = _of(e, width, low)
    return e.apply("where", e.apply("less", a, bound), bound, a)  # a NaN stays


def _at_most(e: Expressions, width: int, a: Any, high: Any) -> Value:
    bound = _of(e, width, high)
    return e.apply("where", e.apply("less", bound, a), bound, a)


def _clamp(e: Expressions, width: int, a: Any, low: Any = None, high: Any = None, **named: Any) -> Value:
    low, high = named.get("min", low), named.get("max", high)
    value = a if low is None else _at_least(e, width, a, low)
    return value if high is None else _at_most(e, width, value, high)


def _hard_tanh(e: Expressions, width: int, a: Any, low: Any = -1, high: Any = 1) -> Value:
    # Unlike clamp's, its gradient is zero at the borders themselves.
    low, high = e.constant(low, width), e.constant(high, width)
    below, above = e.apply("less_equal", a, low), e.apply("less_equal", high, a)
    return e.apply("where", below, low, e.apply("where", above, high, a))


def _hard_sigmoid(e: Expressions, width: int, a: Any) -> Value:
    return _hard_tanh(e, width, e.apply("add", e.apply("div", a, e.constant(6, width)), e.constant(0.5, width)), 0, 1)


def _where(e: Expressions, width: int, condition: Any, a: Any, b: Any) -> Value:
    return e.apply("where", condition, _of(e, width, a), _of(e, width, b))


def _leaky_relu(e: Expressions, width: int, a: Any, slope: Any = 0.01) -> Value:
    positive = e.apply("less", e.constant(0, width), a)
    return e.apply("where", positive, a, e.apply("mul", a, e.constant(slope, width)))


def _elu(e: Expressions, width: int, a: Any, alpha: Any = 1, scale: Any = 1, input_scale: Any = 1) -> Value:
    positive = e.apply("less", e.constant(0, width), a)
    # Clamped, so that the branch not taken does not overflow: its gradient would be 0 · inf.
    low = e.apply("mul", _at_most(e, width, a, 0), e.constant(input_scale, width))
    below = e.apply("mul", e.apply("expm1", low), e.constant(alpha * scale, width))
    return e.apply("where", positive, e.apply("mul", a, e.constant(scale, width)), below)


def _softplus(e: Expressions, width: int, a: Any, beta: Any = 1, threshold: Any = 20) -> Value:
    scaled = e.apply("mul", a, e.constant(beta, width))
    low = _at_most(e, width, scaled, threshold)
    smooth = e.apply("div", e.apply("log1p", e.apply("exp", low)), e.constant(beta, width))
    return e.apply("where", e.apply("less", e.constant(threshold, width), scaled), a, smooth)


def _silu(e: Expressions, width: int, a: Any) -> Value:
    return e.apply("mul", a, e.apply("sigmoid", a))


def _gelu(e: Expressions, width: int, a: Any, approximate: str = "none") -> Value:
    half = e.apply("mul", a, e.constant(0.5, width))
    if approximate == "tanh":
        cube = e.apply("mul", e.apply("mul", a, a), a)
        inner = e.apply("add", a, e.apply("mul", cube, e.constant(0.044715, width)))
        curve = e.apply("tanh", e.apply("mul", inner, e.constant(math.sqrt(2 / math.pi), width)))
    else:
        curve = e.apply("erf", e.apply("mul", a, e.constant(math.sqrt(0.5), width)))
    return e.apply("mul", half, e.apply("add", curve, e.constant(1, width)))


def _lerp(e: Expressions, width: int, a: Any, b: Any, weight: Any) -> Value:
    return e.apply("add", a, e.apply("mul", _of(e, width, weight), e.apply("sub", b, a)))


def _add_scaled(operation: str) -> Any:
    def build(e: Expressions, width: int, a: Any, b: Any, c: Any, value: Any = 1) -> Value:
        part = e.apply("mul", e.apply(operation, b, c), e.constant(value, width))
        return e.apply("add", a, part)

    return build


def _logical_not(e: Expressions, width: int, a: Any) -> Value:
    return e.apply("equal", a, e.constant(0, width))


def _cast(e: Expressions, width: int, a: Any, **options: Any) -> Value:
    return _of(e, width, a)  # what is not of the trace's type has been refused


def _reciprocal(e: Expressions, width: int, a: Any) -> Value:
    return e.apply("div", e.constant(1, width), a)


POINTWISE: dict[str, Any] = {
    **{name: _plain(name) for name in (
        "mul", "neg", "tanh", "sigmoid", "relu", "exp", "log", "log1p", "expm1", "sqrt", "abs", "sin", "cos", "erf",
        "minimum", "maximum",
    )},
    "add": _sum("add"), "sub": _sum("sub"), "rsub": _reversed_sub, "div": _divide, "reciprocal": _reciprocal,
    "lt": _plain("less"), "le": _plain("less_equal"), "eq": _plain("equal"), "ne": _plain("not_equal"),
    "gt": _swapped("less"), "ge": _swapped("less_equal"), "pow": _power, "clamp": _clamp, "clamp_min": _at_least,
    "clamp_max": _at_most, "hardtanh": _hard_tanh, "hardsigmoid": _hard_sigmoid, "where": _where,
    "leaky_relu": _leaky_relu, "elu": _elu, "softplus": _softplus, "silu": _silu, "gelu": _gelu, "lerp": _lerp,
    "addcmul": _add_scaled("mul"), "addcdiv": _add_scaled("div"), "logical_not": _logical_not,
    "bitwise_not": _logical_not, "logical_and": _plain("mul"), "bitwise_and": _plain("mul"),
    "logical_or": _plain("maximum"), "bitwise_or": _plain("maximum"), "_to_copy": _cast,
}  # fmt: skip
