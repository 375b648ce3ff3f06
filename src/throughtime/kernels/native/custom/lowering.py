"""A traced step as pointwise expressions, products taken out.

What a step's results need is followed back to its sources, range by range of units: `chunk` and `cat` then cost
nothing, each gate being a range of its own, and a product whose rows are used in four pieces becomes four gates.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from throughtime.kernels.native.custom.expressions import Expressions, Value, reachable
from throughtime.kernels.native.custom.pointwise import POINTWISE
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
        if node.function not in POINTWISE:
            raise Untraceable(f"step() calls {node.function.strip('_')}, which is not pointwise")
        if node.dtype not in (self.trace.dtype, torch.bool):
            raise Untraceable(f"step() computes in {node.dtype}, its inputs are {self.trace.dtype}")
        arguments = [self._argument(a, node, begin, length) for a in node.arguments]
        try:
            built: Value = POINTWISE[node.function](self.e, length, *arguments, **dict(node.keywords))
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
        if node.function not in POINTWISE:
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
