"""The network does what the machine does: at every step, for machines with a purpose and for random ones."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from throughtime.errors import UsageError
from throughtime.universal import (
    Configuration,
    TuringMachine,
    binary_increment,
    busy_beaver,
    from_turing_machine,
    palindromes,
)


@pytest.mark.parametrize("word", ["", "0", "1", "1011", "1111", "10000000"])
def test_binary_increment_step_for_step(word: str) -> None:
    machine = binary_increment()
    assert list(from_turing_machine(machine).trace(word, 200)) == list(machine.trace(word, 200))


@pytest.mark.parametrize("word", ["", "b", "ab", "abba", "ababa", "abbbaba"])
def test_palindromes_step_for_step(word: str) -> None:
    machine = palindromes()
    assert list(from_turing_machine(machine).trace(word, 200)) == list(machine.trace(word, 200))


def test_the_busy_beaver_step_for_step() -> None:
    machine = busy_beaver()
    found = list(from_turing_machine(machine).trace("", 200))
    assert found == list(machine.trace("", 200))
    assert len(found) == 1 + 107


@st.composite
def machines(draw: st.DrawFn) -> TuringMachine:
    """Any machine of up to three working states and three symbols, whichever of them is the blank."""
    states, symbols = "pqr"[: draw(st.integers(1, 3))], "abc"[: draw(st.integers(1, 3))]
    outcome = st.tuples(st.sampled_from([*states, "halt"]), st.sampled_from(symbols), st.sampled_from("LRS"))
    return TuringMachine(
        states=[*states, "halt"],
        symbols=[*symbols],
        blank=draw(st.sampled_from(symbols)),
        transitions={(state, symbol): draw(outcome) for state in states for symbol in symbols},
        start=states[0],
        halting=["halt"],
    )


@settings(max_examples=40)
@given(st.data())
def test_any_machine_step_for_step(data: st.DataObject) -> None:
    machine = data.draw(machines())
    word = data.draw(st.text(st.sampled_from(machine.symbols), max_size=6))
    assert list(from_turing_machine(machine).trace(word, 25)) == list(machine.trace(word, 25))


@settings(max_examples=30)
@given(st.data())
def test_decoding_undoes_encoding(data: st.DataObject) -> None:
    machine = data.draw(machines())
    half = st.lists(st.sampled_from(machine.symbols), max_size=12)
    configuration = machine.configuration("halt", data.draw(half), data.draw(half))
    network = from_turing_machine(machine)
    x = network.encode(configuration)
    assert network.decode(x) == configuration
    assert all(isinstance(value, Fraction) and 0 <= value <= 1 for value in x)
    # What is encoded is what the network itself arrives at: a halted machine stays, unit by unit.
    assert network.step(network.step(x)) == x


def test_the_step_is_one_affine_map_and_one_nonlinearity() -> None:
    network = from_turing_machine(busy_beaver())
    size = len(network.units)
    assert size == 3 * (8 + 2) + 5 + 2 * 2
    assert len(set(network.units)) == len(network.W) == len(network.b) == size
    assert all(len(row) == size for row in network.W)
    x = network.encode(network.machine.begin(""))
    for _ in range(9):
        by_hand = tuple(
            min(max(sum((w * v for w, v in zip(row, x, strict=True)), bias), Fraction(0)), Fraction(1))
            for row, bias in zip(network.W, network.b, strict=True)
        )
        x = network.step(x)
        assert x == by_hand


def test_the_weights_are_the_same_for_every_word() -> None:
    machine = binary_increment()
    assert from_turing_machine(machine) == from_turing_machine(machine)


def test_nothing_is_decoded_between_the_steps_or_after_rounding() -> None:
    network = from_turing_machine(palindromes())
    x = network.encode(Configuration("back", ("a",), ("b", "b")))
    with pytest.raises(UsageError) as caught:
        network.decode(network.step(x))
    assert str(caught.value) == "TuringNetwork: x must have one state unit at 1, got 0; decode after every 2 steps"
    rounded = [Fraction(float(value)) for value in x]
    with pytest.raises(UsageError) as caught:
        network.decode(rounded)
    assert str(caught.value) == (
        "TuringNetwork: left must be a stack, digits 1, 3, ..., 5 in base 6 over blanks, got 0.533333; "
        "decode what `step` or `encode` gave, unrounded"
    )
    even = [Fraction(2, 6) if unit == "left" else value for unit, value in zip(network.units, x, strict=True)]
    with pytest.raises(UsageError, match="left must be a stack"):
        network.decode(even)


def test_a_word_is_over_the_alphabet() -> None:
    with pytest.raises(UsageError, match="word: unknown symbol '2'"):
        next(from_turing_machine(binary_increment()).trace("2", 10))
