"""A Turing machine as a recurrent network: x(t+1) = σ(W x(t) + b), with rational W, b, x and σ(a) = min(max(a, 0), 1).

The two halves of the tape are two stacks, and a stack is one number. With k symbols the symbol of index j has the odd
digit d = 2j + 1 in base B = 2k, and the stack with digits d1 (top), d2, ... is s = d1/B + d2/B² + ... The blanks that
never end are a finite number too: d/B + d/B² + ... = d/(B-1). Since even digits never occur, stacks with different
tops lie apart by at least 1/B, and a saturated-linear unit tells them apart exactly:

    top ≥ j      σ(B s - 2j), which is 0 or 1
    pop          B s - d
    push d       (s + d)/B

One step of the machine is two of the network:

    read    from the transition just taken: one unit for each state (1 for the machine's own), the stacks `left` and
            `right` (its top is under the head), and the tests of both tops.
    take    for each transition from (q, a) three units: `taken`, and the two stacks after it. A gate that is 0 where
            the state is q and the top is a, and -1 or less elsewhere, is added B times, which leaves the stacks of
            the one transition that is taken and makes all others 0.

It is one homogeneous network: nothing tells a unit which of the two steps it is. While one kind of unit works the
other rests at 0, since every unit whose inputs are all 0 gives 0.

Source: Siegelmann & Sontag 1991, 1995 (there four layers, so four steps, and a base of 4 for two symbols).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from throughtime.errors import UsageError
from throughtime.universal.machine import Configuration, TuringMachine

Vector = tuple[Fraction, ...]

# A linear form: what each unit is multiplied by; under "" stands the constant.
_Form = dict[str, Fraction]
_CONSTANT = ""


@dataclass(frozen=True)
class TuringNetwork:
    """A recurrent network without inputs that simulates `machine`, one machine step in two of its own.

    Attributes:
        machine: what it simulates.
        units: the name of each unit.
        W: the weights, a row for each unit.
        b: the biases.
    """

    steps_per_machine_step: ClassVar[int] = 2

    machine: TuringMachine
    units: tuple[str, ...]
    W: tuple[Vector, ...]
    b: Vector

    def __post_init__(self) -> None:
        # W is mostly zeros: the step multiplies by the others only.
        rows = tuple(tuple((j, w) for j, w in enumerate(row) if w) for row in self.W)
        object.__setattr__(self, "_rows", rows)

    def step(self, x: Vector) -> Vector:
        """x(t+1) = σ(W x(t) + b), exactly."""
        rows: Sequence[Sequence[tuple[int, Fraction]]] = self._rows  # type: ignore[attr-defined]
        return tuple(
            min(max(sum((w * x[j] for j, w in row), start=bias), Fraction(0)), Fraction(1))
            for row, bias in zip(rows, self.b, strict=True)
        )

    def encode(self, configuration: Configuration) -> Vector:
        """The state x of the network in which it is about to read `configuration`."""
        symbols = self.machine.symbols
        values = {_state(configuration.state): Fraction(1)}
        for side, stack in (("left", configuration.left[::-1]), ("right", configuration.right)):
            values[side] = _pushed(stack, self.machine)
            top = symbols.index(stack[0] if stack else self.machine.blank)
            values |= {_test(side, j): Fraction(j <= top) for j in range(1, len(symbols))}
        return tuple(values.get(unit, Fraction(0)) for unit in self.units)

    def decode(self, x: Sequence[Fraction]) -> Configuration:
        """The configuration that `x` stands for, x being the state after an even number of steps.

        Raises:
            UsageError: it stands for none, as between the two steps of a machine step, or when it was rounded.
        """
        values = dict(zip(self.units, x, strict=True))
        states = [state for state in self.machine.states if values[_state(state)] == 1]
        if len(states) != 1:
            raise UsageError(
                f"TuringNetwork: x must have one state unit at 1, got {len(states)}; decode after every "
                f"{self.steps_per_machine_step} steps"
            )
        left, right = (_popped(values[side], self.machine, side=side) for side in ("left", "right"))
        return Configuration(states[0], left[::-1], right)

    def trace(self, word: Sequence[str], max_steps: int) -> Iterator[Configuration]:
        """What `TuringMachine.trace` gives, computed by the network alone and decoded after each machine step.

        Raises:
            UsageError: a symbol of the word is not in the alphabet.
        """
        x = self.encode(self.machine.begin(word))
        configuration = self.decode(x)
        yield configuration
        for _ in range(max_steps):
            if self.machine.halts(configuration):
                return
            for _ in range(self.steps_per_machine_step):
                x = self.step(x)
            configuration = self.decode(x)
            yield configuration


def from_turing_machine(machine: TuringMachine) -> TuringNetwork:
    """The recurrent network that simulates `machine` step for step; see the head of this module.

    It has 3 units for each transition (resting in a halting state counts as one for each symbol), one for each
    state, and 2k for the stacks and their tests, k being the number of symbols.

        >>> from throughtime import universal
        >>> network = universal.from_turing_machine(universal.binary_increment())
        >>> *_, last = network.trace("1011", max_steps=100)
        >>> last.state, "".join(last.right)
        ('done', '1100')

    Source: Siegelmann & Sontag 1995, "On the computational power of neural nets".
    """
    transitions = dict(machine.transitions)
    for state in machine.halting:
        transitions |= {(state, symbol): (state, symbol, "S") for symbol in machine.symbols}
    forms = _reading(machine, transitions)
    for (state, symbol), outcome in transitions.items():
        forms |= _taking(machine, state, symbol, outcome)
    units = tuple(forms)
    W = tuple(tuple(form.get(unit, Fraction(0)) for unit in units) for form in forms.values())
    return TuringNetwork(machine, units, W, tuple(form.get(_CONSTANT, Fraction(0)) for form in forms.values()))


def _reading(machine: TuringMachine, transitions: Mapping[tuple[str, str], tuple[str, str, str]]) -> dict[str, _Form]:
    """The units that read: the state, the stacks, and the tests of their tops, from the transition just taken."""
    forms: dict[str, _Form] = {_state(state): {} for state in machine.states}
    for (state, symbol), (after, _, _) in transitions.items():
        forms[_state(after)][_taken(state, symbol)] = Fraction(1)
    base = _base(machine)
    for side in ("left", "right"):
        stack: _Form = {_after(side, state, symbol): Fraction(1) for state, symbol in transitions}
        forms[side] = stack
        for j in range(1, len(machine.symbols)):
            forms[_test(side, j)] = _sum((base, stack), (-2 * j, _ONE))
    return forms


def _taking(machine: TuringMachine, state: str, symbol: str, outcome: tuple[str, str, str]) -> dict[str, _Form]:
    """The units of one transition: whether it is taken, and the stacks after it."""
    _, written, move = outcome
    base, old, new = _base(machine), _digit(machine, symbol), _digit(machine, written)
    left, right = {"left": Fraction(1)}, {"right": Fraction(1)}
    under_head = _top_is("right", machine.symbols.index(symbol), len(machine.symbols))
    gate = _sum((1, {_state(state): Fraction(1)}), (1, under_head), (-2, _ONE))
    popped = _sum((base, right), (-old, _ONE))
    if move == "R":
        after = {"left": _sum((Fraction(1, base), left), (Fraction(new, base), _ONE)), "right": popped}
    elif move == "L":
        beside = _sum((1, _ONE), *((2, {_test("left", j): Fraction(1)}) for j in range(1, len(machine.symbols))))
        rest = _sum((Fraction(1, base), popped), (Fraction(new, base), _ONE))
        after = {
            "left": _sum((base, left), (-1, beside)),
            "right": _sum((Fraction(1, base), rest), (Fraction(1, base), beside)),
        }
    else:
        after = {"left": left, "right": _sum((Fraction(1, base), popped), (Fraction(new, base), _ONE))}
    stacks = {_after(side, state, symbol): _sum((1, form), (base, gate)) for side, form in after.items()}
    return {_taken(state, symbol): _sum((1, gate), (1, _ONE)), **stacks}


_ONE: _Form = {_CONSTANT: Fraction(1)}


def _sum(*terms: tuple[Fraction | int, Mapping[str, Fraction]]) -> _Form:
    """The sum of forms, each times a factor."""
    total: _Form = {}
    for factor, form in terms:
        for unit, weight in form.items():
            total[unit] = total.get(unit, Fraction(0)) + factor * weight
    return total


def _top_is(side: str, j: int, k: int) -> _Form:
    """1 where the top is the symbol of index j: [top ≥ j] - [top ≥ j+1]; [top ≥ 0] is always 1, [top ≥ k] always 0."""
    at_least = _ONE if j == 0 else {_test(side, j): Fraction(1)}
    return at_least if j + 1 == k else _sum((1, at_least), (-1, {_test(side, j + 1): Fraction(1)}))


def _base(machine: TuringMachine) -> int:
    return 2 * len(machine.symbols)


def _digit(machine: TuringMachine, symbol: str) -> int:
    return 2 * machine.symbols.index(symbol) + 1


def _blanks(machine: TuringMachine) -> Fraction:
    """The stack of blanks without end."""
    return Fraction(_digit(machine, machine.blank), _base(machine) - 1)


def _pushed(symbols: Sequence[str], machine: TuringMachine) -> Fraction:
    """The stack with these symbols, the first on top, over blanks without end."""
    stack = _blanks(machine)
    for symbol in reversed(symbols):
        stack = (stack + _digit(machine, symbol)) / _base(machine)
    return stack


def _popped(stack: Fraction, machine: TuringMachine, *, side: str) -> tuple[str, ...]:
    """The symbols of a stack, the top first, down to the blanks that never end.

    Raises:
        UsageError: the number is no stack of this machine's symbols, as after a step that was rounded.
    """
    symbols: list[str] = []
    base, blanks = _base(machine), _blanks(machine)
    # Above the blanks stand finitely many symbols only if what they add is n / B^m.
    surplus = (stack - blanks).denominator
    exact = pow(base, surplus.bit_length(), surplus) == 0
    while stack != blanks:
        # The top's index: B s is in (2j+1, 2j+2], and 2j+2 is reached where all that follows has the last symbol.
        j = math.ceil(base * stack) // 2 - 1
        if not (exact and 0 <= j < len(machine.symbols) and base * stack > 2 * j + 1):
            raise UsageError(
                f"TuringNetwork: {side} must be a stack, digits 1, 3, ..., {base - 1} in base {base} over blanks, "
                f"got {float(stack):.6g}; decode what `step` or `encode` gave, unrounded"
            )
        symbols.append(machine.symbols[j])
        stack = base * stack - (2 * j + 1)
    return tuple(symbols)


def _state(state: str) -> str:
    return f"state {state}"


def _test(side: str, j: int) -> str:
    return f"{side} top >= {j}"


def _taken(state: str, symbol: str) -> str:
    return f"taken from {state}, {symbol}"


def _after(side: str, state: str, symbol: str) -> str:
    return f"{side} after {state}, {symbol}"
