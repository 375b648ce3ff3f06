"""Plans: a traced step as sections of products and pointwise programs, forward and backward, for the C++ engine."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from throughtime.kernels.native.custom.derivatives import Product, differentiate, products_of
from throughtime.kernels.native.custom.expressions import COSTLY, Expressions, Value, reachable
from throughtime.kernels.native.custom.lowering import Hoisted, Lowered, Rows, lower
from throughtime.kernels.native.custom.programs import Location, Place, Scheduler, Wanted, real
from throughtime.kernels.native.custom.tracing import Trace, Untraceable


@dataclass(frozen=True)
class HoistedPart:
    """Columns of the loop's input that are a product of what no state goes into."""

    operands: tuple[Value, ...]
    rows: Rows
    ranges: tuple[tuple[int, int], ...]  # of the weight's rows: begin, length

    @property
    def width(self) -> int:
        """How many columns there are."""
        return sum(length for _, length in self.ranges)


@dataclass(frozen=True)
class Plan:
    """How a step is run: what stands in the loop's input, its vectors and weights, and the programs."""

    trace: Trace
    fields: tuple[Value, ...]
    takes_projected: bool  # the loop's input begins with `projected` itself
    hoisted: tuple[HoistedPart, ...]  # and goes on with these
    columns: dict[int, int]  # of each leaf of the input, by its number
    covered: bool  # every column of the input has a gradient
    vectors: tuple[Value, ...]
    vector_offsets: dict[int, int]
    products: tuple[Product, ...]
    forward: dict[str, Any]  # as the C++ `Plan` takes it; nothing is kept
    training: dict[str, Any]  # keeps what the backward pass needs
    native: dict[tuple[str, bool], Any] = field(default_factory=dict)  # the C++ plans, by module and `training`

    @functools.cached_property
    def fixed_nodes(self) -> list[int]:
        """The nodes of the trace whose values a call needs."""
        values = [*self.vectors, *(v for part in self.hoisted for v in reachable(part.operands))]
        nodes = {v.detail.node for v in values if v.operation == "fixed"}
        nodes |= {gate.detail.node for product in self.products for gate in product.gates}
        return sorted(nodes | {part.rows.node for part in self.hoisted})

    @property
    def input_width(self) -> int:
        """G: columns of the loop's input."""
        return int(self.training["inputs"])


def plan(trace: Trace) -> Plan:
    """The plan of a traced step.

    Raises:
        Untraceable: the step is not "projections, then pointwise".
    """
    return _Planner(trace, lower(trace)).plan()


class _Planner:
    def __init__(self, trace: Trace, lowered: Lowered) -> None:
        self.trace = trace
        self.e = lowered.expressions
        self.fields = lowered.fields
        self.products = products_of(lowered.fields)
        self._inputs(lowered)
        self.constants: dict[float, int] = {}
        self.forward_count = self.e.count
        self.saved: dict[int, int] = {}  # columns of saved values, by number
        self.saved_width = 0
        for product in self.products:
            for segment in product.operand:
                if real(segment).operation != "state":
                    self._save(real(segment))

    # -- what stands where before the loop ----------------------------------------------------------------------------

    def _inputs(self, lowered: Lowered) -> None:
        leaves = [v for v in reachable(self.fields) if v.operation in ("projected", "hoisted", "fixed")]
        taken = sorted((v.detail, v.width) for v in leaves if v.operation == "projected")
        for (begin, width), (following, _) in pairwise(taken):
            if begin + width > following:
                raise Untraceable("step() takes overlapping parts of `projected`")
        self.takes_projected = bool(taken)
        self.columns = {v.number: v.detail for v in leaves if v.operation == "projected"}
        width = self.trace.projected_size if taken else 0
        self.covered = sum(w for _, w in taken) == width
        groups: dict[Any, list[Value]] = {}
        for v in leaves:
            if v.operation == "hoisted":
                h: Hoisted = v.detail
                key = (h.operands, h.rows.node, h.rows.transposed, h.rows.columns)
                groups.setdefault(key, []).append(v)
        self.hoisted = []
        for members in groups.values():
            members.sort(key=lambda v: v.detail.rows.begin)
            ranges: list[tuple[int, int]] = []
            for v in members:
                self.columns[v.number] = width
                width += v.width
                if ranges and sum(ranges[-1]) == v.detail.rows.begin:
                    ranges[-1] = (ranges[-1][0], ranges[-1][1] + v.width)
                else:
                    ranges.append((v.detail.rows.begin, v.width))
            first: Hoisted = members[0].detail
            self.hoisted.append(HoistedPart(lowered.operands[first], first.rows, tuple(ranges)))
        self.input_width = width
        self.vectors = [v for v in leaves if v.operation == "fixed"]
        self.vector_offsets, at = {}, 0
        for v in self.vectors:
            self.vector_offsets[v.number] = at
            at += v.width

    def _save(self, value: Value) -> int:
        if value.number not in self.saved:
            self.saved[value.number] = self.saved_width
            self.saved_width += value.width
        return self.saved[value.number]

    # -- the plan -----------------------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        inference = self._description(self._forward(), self.saved_width)
        gradients = differentiate(self.e, self.fields, self.products)
        backward = self._backward(gradients)
        sections, rows, values, places, vectors = backward
        training = self._description(self._forward(), self.saved_width)
        training |= {"backward": sections, "rows": rows, "values": values, "vectors": vectors}
        for q, product in enumerate(training["products"]):
            product["gradients"] = places[q]
        for described in (inference, training):
            described["constants"] = list(self.constants)
        return Plan(
            self.trace, tuple(self.fields), self.takes_projected, tuple(self.hoisted), self.columns, self.covered,
            tuple(self.vectors), self.vector_offsets, tuple(self.products), inference, training,
        )  # fmt: skip

    def _description(self, sections: tuple[list[dict[str, Any]], int], saved: int) -> dict[str, Any]:
        forward, crossing = sections
        return {
            "fields": list(self.trace.sizes), "inputs": self.input_width, "saved": saved + crossing, "rows": 0,
            "values": 0, "products": [self._product(q) for q in range(len(self.products))], "forward": forward,
            "backward": [], "vectors": [],
        }  # fmt: skip

    def _product(self, q: int) -> dict[str, Any]:
        product = self.products[q]
        segments = []
        for segment, position in product.positions():
            source = real(segment)
            if source.operation == "state":
                flows = int(segment.operation == "state")
                segments.append((int(Place.BEFORE), source.detail, position, source.width, flows))
            else:
                segments.append((int(Place.SAVED), self.saved[source.number], position, source.width, 0))
        return {
            "gates": len(product.gates), "units": product.units, "depth": product.depth, "segments": segments,
            "gradients": [],
        }  # fmt: skip

    # -- forward ------------------------------------------------------------------------------------------------------

    def _forward(self) -> tuple[list[dict[str, Any]], int]:
        """The sections, storing all that is to be saved so far, and the columns that they need for themselves."""
        values = {v.number: v for v in reachable(self.fields)}
        wanted = [(real(v), Location(Place.AFTER, f)) for f, v in enumerate(self.fields)]
        wanted += [(values[number], Location(Place.SAVED, 0, column)) for number, column in self.saved.items()]
        scheduler = Scheduler(self._forward_level, self._leaf, self.constants, Place.SAVED, self.saved_width)
        gates = {gate.number: (q, g) for q, p in enumerate(self.products) for g, gate in enumerate(p.gates)}
        sections = scheduler.run(wanted, gates)
        for q, product in enumerate(self.products):
            for segment, position in product.positions():
                source = real(segment)
                if source.operation == "state":
                    location = Location(Place.AFTER, source.detail)
                    packing = (q, position, int(Place.AFTER), source.detail)
                else:
                    location = Location(Place.SAVED, 0, self.saved[source.number])
                    packing = (q, position, int(Place.SAVED), self.saved[source.number])
                sections[scheduler.stored_in[location]].packings.append(packing)
            key = (self._forward_level(product.gates[0]), product.units)
            sections[key].products.append(q)
        return [sections[key].description() for key in sorted(sections)], scheduler.crossing - self.saved_width

    def _forward_level(self, value: Value) -> int:
        """How many products, one behind another within a step, come before it."""
        value = real(value)
        if value.operation == "gate":
            return max(0 if real(s).operation == "state" else self._forward_level(s) + 1 for s in value.arguments)
        if not value.is_operation:
            return 0
        return self._levels(value, self._forward_level)

    def _levels(self, value: Value, level: Callable[[Value], int]) -> int:
        known = self.__dict__.setdefault("_known_levels", {})
        if value.number not in known:
            known[value.number] = max((level(a) for a in value.arguments), default=0)
        return int(known[value.number])

    def _leaf(self, value: Value) -> Location:
        """Where a leaf stands."""
        kind, detail = value.operation, value.detail
        if kind in ("projected", "hoisted"):
            return Location(Place.INPUT, 0, self.columns[value.number])
        if kind == "fixed":
            return Location(Place.VECTOR, 0, self.vector_offsets[value.number])
        if kind in ("d_operand", "d_carried_operand"):
            return Location(Place[kind.upper()], *detail)
        if kind == "saved":
            return Location(Place.SAVED, 0, detail)
        fields = {"state": Place.BEFORE, "after": Place.AFTER, "d_output": Place.D_OUTPUT, "d_carried": Place.D_CARRIED}
        return Location(fields[kind], detail)

    # -- backward -----------------------------------------------------------------------------------------------------

    def _backward(self, gradients: dict[int, Value]) -> Any:
        """The sections; the widths of D_ROW and D_VALUE; where each gate's and each vector's gradient stands."""
        kept = _Kept(self)

        def gradient(value: Value) -> Value:
            found = gradients.get(value.number)
            return self.e.constant(0, value.width) if found is None else kept.rewritten(found)

        states = {v.detail: v for v in reachable(self.fields) if v.operation == "state"}
        wanted: Wanted = []
        for f, size in enumerate(self.trace.sizes):
            before = gradient(states[f]) if f in states else self.e.constant(0, size)
            wanted.append((before, Location(Place.D_BEFORE, f)))
        stands: dict[int, Location] = {}
        for leaf in reachable(self.fields):
            if leaf.operation in ("projected", "hoisted"):
                found = gradient(leaf)
                location = Location(Place.D_INPUT, 0, self.columns[leaf.number])
                stands.setdefault(found.number, location)
                wanted.append((found, location))
        rows = 0

        def row(value: Value) -> Location:
            nonlocal rows
            if value.number not in stands:
                stands[value.number] = Location(Place.D_ROW, 0, rows)
                wanted.append((value, stands[value.number]))
                rows += value.width
            return stands[value.number]

        of_gates = [[gradient(gate) for gate in product.gates] for product in self.products]
        places = [[row(value) for value in found] for found in of_gates]
        vectors = []
        for v in self.vectors:
            if v.number in gradients:
                at = row(gradient(v))
                vectors.append((int(at.place), at.offset, v.width, self.vector_offsets[v.number]))

        def level(value: Value) -> int:
            if value.operation == "d_operand":
                return 1 + max(level(found) for found in of_gates[value.detail[0]])
            return self._backward_levels(value, level) if value.is_operation else 0

        self._known_backward: dict[int, int] = {}
        scheduler = Scheduler(level, self._leaf, self.constants, Place.D_VALUE, 0)
        sections = scheduler.run(wanted, {})
        for q, product in enumerate(self.products):
            keys = [scheduler.stored_in[place] for place in places[q]]
            for g, (key, place) in enumerate(zip(keys, places[q], strict=True)):
                sections[key].packings.append((q, g * product.units, int(place.place), place.offset))
            sections[max(keys)].products.append(q)
        described = [sections[key].description() for key in sorted(sections)]
        located = [[(int(place.place), place.offset) for place in found] for found in places]
        return described, rows, scheduler.crossing, located, vectors

    def _backward_levels(self, value: Value, level: Callable[[Value], int]) -> int:
        if value.number not in self._known_backward:
            self._known_backward[value.number] = max((level(a) for a in value.arguments), default=0)
        return self._known_backward[value.number]


class _Kept:
    """Backward expressions on what is kept of the forward pass: what is cheap is computed again, the rest is saved."""

    def __init__(self, planner: _Planner) -> None:
        self.planner = planner
        self.e: Expressions = planner.e
        self.fields = {real(v).number: f for f, v in reversed(list(enumerate(planner.fields)))}
        self.known: dict[int, Value] = {}

    def rewritten(self, value: Value) -> Value:
        value = real(value)
        if value.number not in self.known:
            self.known[value.number] = self._rewritten(value)
        return self.known[value.number]

    def _rewritten(self, value: Value) -> Value:
        if value.number < self.planner.forward_count and (value.is_operation or value.operation == "gate"):
            if value.number in self.fields:
                return self.e.leaf("after", self.fields[value.number], value.width)
            known = value.number in self.planner.saved or value.operation == "gate"
            costly = value.operation in COSTLY and not all(self._at_hand(a) for a in value.arguments)
            if known or costly:
                return self.e.leaf("saved", self.planner._save(value), value.width)
        if not value.is_operation:
            return value
        return self.e.apply(value.operation, *(self.rewritten(a) for a in value.arguments))

    def _at_hand(self, value: Value) -> bool:
        value = real(value)
        return value.number in self.fields or value.number in self.planner.saved or (
            not value.is_operation and value.operation != "gate"
        )  # fmt: skip
