"""A traced step as pointwise expressions, products taken out.

What a step's results need is followed back to its sources, range by range of units: `chunk` and `cat` then cost
nothing, each gate being a range of its own, and a product whose rows are used in four pieces becomes four gates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from throughtime.kernels.native.custom.expressions import Expressions, Value, reachable
from throughtime.kernels.native.custom.tracing import PRODUCTS, ROWS, Node, Ref, Trace, Untraceable, row_width

# A range of a row's elements: which node, where it begins, how long it is.
Piece = tuple[int, int, int]


@dataclass(frozen=True)
class Fixed:
    """Elements [begin, begin + width) of a parameter (or what is made of some), spread to the shape of a row."""

    node: int
    row_shape: tuple[int, ...]
    begin: int


@dataclass(frozen=True)
class Rows:
    """Rows [begin, begin + length) of a weight (outputs, inputs), its columns in `columns` (begin, length)."""

    node: int
    transposed: bool  # the node is (inputs, outputs)
    columns: tuple[tuple[int, int], ...]
    begin: int
    length: int


@dataclass(frozen=True)
class Hoisted:
    """Product of what no state goes into: computed for all steps at once."""

    operands: tuple[int, ...]  # the numbers of the values
    rows: Rows


@dataclass
class Lowered:
    """The fields of the new state as values.

    Leaves: "projected" (detail: first column), "hoisted" (detail: `Hoisted`), "state" (detail: field), "fixed" (detail:
    `Fixed`), "constant", "gate" (detail: `Rows`; arguments: the operand's segments), "detached" (passes its argument
    on, and no gradient back).
    """

    expressions: Expressions
    fields: list[Value]
    operands: dict[Hoisted, tuple[Value, ...]] = field(default_factory=dict)


def lower(trace: Trace) -> Lowered:
    """The step's results as pointwise expressions.

    Raises:
        Untraceable: something is not pointwise, nor a product of rows with a parameter.
    """
    lowering = _Lowering(trace)
    for number, size in zip(trace.results, trace.sizes, strict=True):
        lowering.lowered.fields.append(lowering.value(number, 0, size))
    return lowering.lowered


class _Lowering:
    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.e = Expressions()
        self.lowered = Lowered(self.e, [])
        self._known: dict[Piece, Value] = {}

    def value(self, number: int, begin: int, length: int) -> Value:
        """Elements [begin, begin + length) of a node's rows."""
        key = (number, begin, length)
        if key not in self._known:
            node = self.trace.nodes[number]
            value = self._value(node, begin, length)
            if node.detached and value.operation not in ("fixed", "constant"):
                value = self.e.leaf("detached", None, length, (value,))
            self._known[key] = value
        return self._known[key]

    def _value(self, node: Node, begin: int, length: int) -> Value:
        if node.function == "projected":
            return self.e.leaf("projected", begin, length)
        if node.function == "state":
            if length != row_width(node.shape):
                raise Untraceable("step() takes a field of the state apart; make the parts fields of their own")
            return self.e.leaf("state", node.arguments[0], length)
        if node.runs is not None:
            pieces = self._sources(node, begin, length)
            if len(pieces) > 1:
                raise Untraceable(f"step() joins parts ({node.function.strip('_')}) where a whole is used")
            return self.value(*pieces[0])
        if node.function in PRODUCTS:
            return self._product(node, begin, length)
        if node.function in _FILLS:
            return self.e.constant(_FILLS[node.function](node), length)
        if node.function not in _POINTWISE:
            raise Untraceable(f"step() calls {node.function.strip('_')}, which is not pointwise")
        if node.dtype not in (self.trace.dtype, torch.bool):
            raise Untraceable(f"step() computes in {node.dtype}, its inputs are {self.trace.dtype}")
        arguments = [self._argument(a, node, begin, length) for a in node.arguments]
        try:
            built: Value = _POINTWISE[node.function](self.e, length, *arguments, **dict(node.keywords))
        except TypeError as error:
            raise Untraceable(f"step() calls {node.function} in a form that is not known: {error}") from error
        return built

    def _argument(self, given: Any, consumer: Node, begin: int, length: int) -> Any:
        """An operation's argument: a value where it is a tensor."""
        if not isinstance(given, Ref):
            return given
        node = self.trace.nodes[given.node]
        if node.fixed:
            return self.fixed(given.node, consumer.shape[1:], begin, length)
        if node.shape == consumer.shape:
            return self.value(given.node, begin, length)
        if len(node.shape) == len(consumer.shape):
            numbers = torch.arange(row_width(node.shape)).view(node.shape[1:]).expand(consumer.shape[1:]).reshape(-1)
            first = int(numbers[begin])
            if torch.equal(numbers[begin : begin + length], torch.arange(first, first + length)):
                return self.value(given.node, first, length)
        self.value(given.node, 0, row_width(node.shape))  # what is wrong with the tensor itself is said first
        raise Untraceable(f"step() spreads a tensor {_form(node)} over one {_form(consumer)} ({consumer.function})")

    def fixed(self, number: int, row_shape: tuple[int, ...], begin: int, length: int) -> Value:
        """A parameter's elements, as one value per unit."""
        node = self.trace.nodes[number]
        if not node.dtype.is_floating_point and node.dtype != torch.bool:
            raise Untraceable(f"step() uses a parameter or buffer of {node.dtype}")
        if len(node.shape) > len(row_shape) + 1 or (len(node.shape) == len(row_shape) + 1 and node.shape[0] > ROWS):
            raise Untraceable(f"step() uses a parameter {node.shape} as if it had rows")
        return self.e.leaf("fixed", Fixed(number, row_shape, begin), length)

    # -- ranges -------------------------------------------------------------------------------------------------------

    def _sources(self, node: Node, begin: int, length: int) -> list[Piece]:
        """Where elements [begin, begin + length) of a rearrangement come from."""
        assert node.runs is not None
        sources: list[tuple[int, int]] = []  # node and where its elements' numbers begin
        total = 0
        for ref in _refs(node.arguments):
            sources.append((ref.node, total))
            total += row_width(self.trace.nodes[ref.node].shape)
        found: list[Piece] = []
        position = 0
        for first, count in node.runs:
            low, high = max(begin, position), min(begin + length, position + count)
            at, left = first + low - position, high - low
            position += count
            while left > 0:
                number, start = next((n, s) for n, s in reversed(sources) if s <= at)
                taken = min(left, start + row_width(self.trace.nodes[number].shape) - at)
                found.append((number, at - start, taken))
                at, left = at + taken, left - taken
        return found

    def _pieces(self, number: int, begin: int, length: int) -> list[Piece]:
        """The range cut wherever parts were joined on the way to it."""
        node = self.trace.nodes[number]
        if node.runs is not None and not node.detached:
            return [piece for source in self._sources(node, begin, length) for piece in self._pieces(*source)]
        if node.function not in _POINTWISE:
            return [(number, begin, length)]
        cuts = {begin, begin + length}
        for ref in _refs(node.arguments):
            source = self.trace.nodes[ref.node]
            if source.fixed or source.shape != node.shape:
                continue
            at = begin
            for _, _, taken in self._pieces(ref.node, begin, length):
                cuts.add(at := at + taken)
        ordered = sorted(cuts)
        return [(number, a, b - a) for a, b in pairwise(ordered)]

    # -- products -----------------------------------------------------------------------------------------------------

    def _product(self, node: Node, begin: int, length: int) -> Value:
        """W v for rows [begin, begin + length) of W: what no state goes into apart, as that need not wait for it."""
        arguments, options = list(node.arguments), dict(node.keywords)
        bias = None
        if node.function == "addmm":
            bias, *arguments = arguments
        elif node.function == "linear" and len(arguments) > 2:
            bias = arguments.pop()
        operand, weight = arguments
        of_operand, of_weight = self.trace.nodes[operand.node], self.trace.nodes[weight.node]
        if of_operand.fixed or not of_weight.fixed:
            raise Untraceable("step() multiplies two tensors that both depend on the state or the input")
        if len(of_operand.shape) != 2 or of_operand.shape[0] != ROWS:
            raise Untraceable(f"step() multiplies a tensor {_form(of_operand)} with a matrix; rows (B, units) can be")
        moving: list[tuple[Value, tuple[int, int]]] = []
        still: list[tuple[Value, tuple[int, int]]] = []
        column = 0
        for piece in self._pieces(operand.node, 0, of_operand.shape[1]):
            value = self.value(*piece)
            (moving if _moves(value) else still).append((value, (column, piece[2])))
            column += piece[2]
        transposed = node.function != "linear"
        total: Value | None = None
        for kind, parts in (("gate", moving), ("hoisted", still)):
            if not parts:
                continue
            values = tuple(value for value, _ in parts)
            rows = Rows(weight.node, transposed, _merged([columns for _, columns in parts]), begin, length)
            if kind == "gate":
                part = self.e.leaf("gate", rows, length, values)
            else:
                hoisted = Hoisted(tuple(value.number for value in values), rows)
                self.lowered.operands[hoisted] = values
                part = self.e.leaf("hoisted", hoisted, length)
            part = self._scaled(part, options.get("alpha", 1))
            total = part if total is None else self.e.apply("add", total, part)
        assert total is not None
        if bias is not None:
            of_bias = self._argument(bias, node, begin, length)
            total = self.e.apply("add", total, self._scaled(of_bias, options.get("beta", 1)))
        return total

    def _scaled(self, value: Value, factor: float | int) -> Value:
        return self.e.apply("mul", value, self.e.constant(factor, value.width))


def _moves(value: Value) -> bool:
    """Whether a state goes into it."""
    return any(v.operation in ("state", "gate") for v in reachable([value]))


def _merged(columns: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Ranges (begin, length), neighbours made one."""
    found: list[tuple[int, int]] = []
    for begin, length in columns:
        if found and sum(found[-1]) == begin:
            found[-1] = (found[-1][0], found[-1][1] + length)
        else:
            found.append((begin, length))
    return tuple(found)


def _refs(arguments: Any) -> list[Ref]:
    if isinstance(arguments, tuple):
        return [ref for argument in arguments for ref in _refs(argument)]
    return [arguments] if isinstance(arguments, Ref) else []


def _form(node: Node) -> str:
    return f"({', '.join(['B', *map(str, node.shape[1:])])})" if not node.fixed else str(node.shape)


_FILLS: dict[str, Any] = {
    "zeros_like": lambda node: 0.0, "ones_like": lambda node: 1.0, "full_like": lambda node: node.arguments[1],
    "new_zeros": lambda node: 0.0, "new_ones": lambda node: 1.0, "new_full": lambda node: node.arguments[2],
}  # fmt: skip


# -- pointwise operations ----------------------------------------------------------------------------------------------
# Each is given the builder, the width, and PyTorch's own arguments, tensors among them as values.


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


_POINTWISE: dict[str, Any] = {
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
