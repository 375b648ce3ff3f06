"""Straight-line programs over units: values put into sections, registers given out, operations fused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from throughtime.kernels.native.custom.expressions import NUMBERS, Value
from throughtime.kernels.native.custom.tracing import Untraceable

_BLOCK_UNITS = 256  # kBlockUnits of pointwise.hpp
_MOST_BASES = 64  # kMaxBases of custom.hpp


class Place(IntEnum):
    """Where values stand, in the order of the C++ enumeration `Place` of custom.hpp, which describes each."""

    REGISTER = 0
    CONSTANT = 1
    PRODUCT = 2
    VECTOR = 3
    INPUT = 4
    BEFORE = 5
    AFTER = 6
    SAVED = 7
    D_INPUT = 8
    D_OUTPUT = 9
    D_CARRIED = 10
    D_BEFORE = 11
    D_CARRIED_OPERAND = 12
    D_OPERAND = 13
    D_ROW = 14
    D_VALUE = 15


@dataclass(frozen=True)
class Location:
    """A place, which of several (a field, a product), and the first element's offset there."""

    place: Place
    index: int = 0
    offset: int = 0


Wanted = list[tuple[Value, Location]]
Key = tuple[int, int]  # level and units


@dataclass
class Section:
    """Products, and a program over their units behind them; `bases` are where its operands' offsets count from."""

    units: int
    products: list[int] = field(default_factory=list)
    packings: list[tuple[int, int, int, int]] = field(default_factory=list)
    bases: dict[tuple[int, int], int] = field(default_factory=dict)
    code: list[tuple[Any, ...]] = field(default_factory=list)
    registers: int = 0

    def operand(self, location: Location) -> tuple[int, int]:
        """A location as instructions name it: base and offset."""
        key = (int(location.place), location.index)
        return self.bases.setdefault(key, len(self.bases)), location.offset

    def emit(self, operation: str, to: Location, arguments: list[Location]) -> None:
        """Append an instruction."""
        operands = [self.operand(location) for location in (to, *arguments)]
        operands += [(0, 0)] * (4 - len(operands))
        self.code.append((NUMBERS[operation], *operands))

    def description(self) -> dict[str, Any]:
        """As the C++ `Section` takes it.

        Raises:
            Untraceable: it has more bases than that holds.
        """
        if len(self.bases) > _MOST_BASES:
            raise Untraceable("step() has too many fields")
        return {
            "units": self.units, "registers": self.registers, "products": self.products, "bases": list(self.bases),
            "code": self.code, "packings": self.packings,
        }  # fmt: skip


class Scheduler:
    """Puts values into sections, and makes a program of each."""

    def __init__(
        self, level: Callable[[Value], int], leaf: Callable[[Value], Location], constants: dict[float, int],
        crossing_place: Place, crossing: int,
    ) -> None:  # fmt: skip
        self.level = level
        self.leaf = leaf
        self.constants = constants
        self.crossing_place = crossing_place
        self.crossing = crossing
        self.stored_in: dict[Location, Key] = {}
        self.stores: dict[int, list[Location]] = {}
        self.uses: dict[int, int] = {}

    def run(self, wanted: Wanted, gates: dict[int, tuple[int, int]]) -> dict[Key, Section]:
        """The sections by level and units; `gates` says which product's which gate a value is."""
        values = _reachable_now([value for value, _ in wanted])
        for value, location in wanted:
            self.stores.setdefault(value.number, []).append(location)
            self.stored_in[location] = self._key(value)
        for value in values:
            for argument in _arguments(value):
                self.uses[argument.number] = self.uses.get(argument.number, 0) + 1
                crosses = (argument.is_operation or argument.operation == "gate") and (
                    self._key(argument) != self._key(value) and argument.number not in self.stores
                )
                if crosses:
                    self.stores[argument.number] = [Location(self.crossing_place, 0, self.crossing)]
                    self.crossing += argument.width
        members: dict[Key, list[Value]] = {}
        for value in values:
            if value.is_operation or value.operation == "gate" or value.number in self.stores:
                members.setdefault(self._key(value), []).append(value)
        slots = self._slots(members, gates)
        return {key: self._section(key, inside, slots) for key, inside in members.items()}

    def _key(self, value: Value) -> Key:
        return self.level(value), value.width

    def _slots(self, members: dict[Key, list[Value]], gates: dict[int, tuple[int, int]]) -> dict[int, Location]:
        """Where the products' gates stand in the thread's own memory, in the order of products."""
        found = {}
        for inside in members.values():
            own = sorted((gates[v.number], v.number) for v in inside if v.operation == "gate")
            for slot, (_, number) in enumerate(own):
                found[number] = Location(Place.PRODUCT, 0, slot * _BLOCK_UNITS)
        return found

    def _section(self, key: Key, members: list[Value], slots: dict[int, Location]) -> Section:
        section = Section(key[1])
        section.operand(Location(Place.REGISTER))
        fused = {}
        inlined: set[int] = set()
        for value in members:
            if (found := self._fused(value, key, inlined)) is not None:
                fused[value.number] = found
        order = [v for v in members if v.number not in inlined]
        plain = {v.number: fused.get(v.number, (v.operation, list(_arguments(v)))) for v in order}
        last = {a.number: i for i, v in enumerate(order) if v.is_operation for a in plain[v.number][1]}
        registers: dict[int, int] = {}
        free: list[int] = []

        def location(value: Value) -> Location:
            if value.operation == "constant":
                index = self.constants.setdefault(value.detail, len(self.constants))
                return Location(Place.CONSTANT, 0, index * _BLOCK_UNITS)
            if value.operation == "gate" and self._key(value) == key:
                return slots[value.number]
            if value.number in registers:
                return Location(Place.REGISTER, 0, registers[value.number] * _BLOCK_UNITS)
            if value.is_operation or value.operation == "gate":
                return self.stores[value.number][0]
            return self.leaf(value)

        for i, value in enumerate(order):
            stores = self.stores.get(value.number, [])
            if not value.is_operation:
                for to in stores:
                    section.emit("copy", to, [location(value)])
                continue
            operation, arguments = plain[value.number]
            sources = [location(a) for a in arguments]
            for a in {a.number for a in arguments}:
                if a in registers and last[a] == i:
                    free.append(registers[a])
            if stores:
                to = stores[0]
            else:
                if not free:
                    free.append(section.registers)
                    section.registers += 1
                registers[value.number] = free.pop()
                to = Location(Place.REGISTER, 0, registers[value.number] * _BLOCK_UNITS)
            section.emit(operation, to, sources)
            for copy in stores[1:]:
                section.emit("copy", copy, [to])
        return section

    def _fused(self, value: Value, key: Key, inlined: set[int]) -> tuple[str, list[Value]] | None:
        """Two operations as one, where nobody else wants the first's result."""

        def inner(argument: Value, operation: str) -> bool:
            alone = self.uses[argument.number] == 1 and argument.number not in self.stores
            return (
                alone and argument.operation == operation and argument.number not in inlined
                and self._key(argument) == key
            )  # fmt: skip

        arguments = list(_arguments(value))
        if value.operation in ("tanh", "sigmoid") and inner(arguments[0], "add"):
            # Not an addition that has itself become a multiply-add.
            parts = list(_arguments(arguments[0]))
            if not any(part.number in inlined for part in parts):
                inlined.add(arguments[0].number)
                return f"{value.operation}_sum", parts
        if value.operation == "add":
            for product, other in (arguments, arguments[::-1]):
                if inner(product, "mul"):
                    inlined.add(product.number)
                    return "mul_add", [*_arguments(product), other]
        if value.operation == "sub" and inner(arguments[1], "mul"):
            inlined.add(arguments[1].number)
            return "neg_mul_add", [*_arguments(arguments[1]), arguments[0]]
        return None


def real(value: Value) -> Value:
    """The value itself: detaching changes gradients only."""
    while value.operation == "detached":
        value = value.arguments[0]
    return value


def _arguments(value: Value) -> tuple[Value, ...]:
    """What the program reads for it; a gate comes from a product."""
    return tuple(real(a) for a in value.arguments) if value.is_operation else ()


def _reachable_now(wanted: list[Value]) -> list[Value]:
    """All that the program reads or computes for these, arguments first; operands of products are not among it."""
    found: dict[int, Value] = {}
    left = list(wanted)
    while left:
        value = left.pop()
        if value.number not in found:
            found[value.number] = value
            left.extend(_arguments(value))
    return [found[number] for number in sorted(found)]
