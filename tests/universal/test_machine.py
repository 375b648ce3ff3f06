"""The direct simulator: three machines with known results, and what is no machine."""

from __future__ import annotations

from typing import Any

import pytest

from throughtime.errors import UsageError
from throughtime.universal import Configuration, TuringMachine, binary_increment, busy_beaver, palindromes


@pytest.mark.parametrize("number", [0, 1, 5, 7, 8, 1023])
def test_increment_counts(number: int) -> None:
    *_, last = binary_increment().trace(f"{number:b}", 1000)
    assert last == Configuration("done", (), tuple(f"{number + 1:b}"))


@pytest.mark.parametrize("word", ["", "a", "ab", "bb", "aba", "abb", "abba", "abab", "bbabb", "aabbaab"])
def test_palindromes_are_told_apart(word: str) -> None:
    *_, last = palindromes().trace(word, 1000)
    assert last.state == ("accept" if word == word[::-1] else "reject")


def test_the_busy_beaver_runs_107_steps_and_writes_13_ones() -> None:
    machine = busy_beaver()
    trace = list(machine.trace("", 1000))
    assert len(trace) == 1 + 107
    assert (trace[-1].left + trace[-1].right).count("1") == 13
    assert machine.halts(trace[-1])
    assert machine.step(trace[-1]) == trace[-1]


def test_a_trace_ends_at_its_limit() -> None:
    assert len(list(busy_beaver().trace("", 20))) == 1 + 20


def test_configurations_leave_endless_blanks_out() -> None:
    machine = palindromes()
    assert machine.begin("ab__") == Configuration("first", (), ("a", "b"))
    assert machine.configuration("back", "__a_", "__") == Configuration("back", ("a", "_"), ())


SOUND: dict[str, Any] = {
    "states": ["go", "rest"],
    "symbols": ["_", "1"],
    "blank": "_",
    "transitions": {("go", "_"): ("rest", "1", "S"), ("go", "1"): ("go", "1", "R")},
    "start": "go",
    "halting": ["rest"],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"states": ["go", "go"]}, "states must be different names, none of them empty, got ['go', 'go']"),
        ({"symbols": ["_", ""]}, "symbols must be different names, none of them empty, got ['_', '']"),
        ({"blank": " "}, "blank: unknown symbol ' '; symbols are _, 1"),
        ({"start": "run"}, "start: unknown state 'run'; states are go, rest"),
        ({"halting": ["stop"]}, "halting: unknown state 'stop'; states are go, rest"),
        (
            {"transitions": {("go", "_"): ("stop", "1", "S")}},
            "transition from ('go', '_'): unknown state 'stop'; states are go, rest",
        ),
        (
            {"transitions": {("go", "_"): ("rest", "2", "S")}},
            "transition from ('go', '_'): unknown symbol '2'; symbols are _, 1",
        ),
        (
            {"transitions": {("go", "_"): ("rest", "1", "U")}},
            "transition from ('go', '_'): move must be one of L, R, S, got 'U'",
        ),
        (
            {"transitions": {("rest", "_"): ("go", "1", "S")}},
            "transition from ('rest', '_'): a halting state rests; take it out of halting, or this away",
        ),
        (
            {"transitions": {("go", "_"): ("rest", "1", "S")}},
            "no transition from ('go', '1'); give one, to a halting state where the machine should rest",
        ),
    ],
)
def test_what_is_no_machine(change: dict[str, Any], message: str) -> None:
    TuringMachine(**SOUND)
    with pytest.raises(UsageError) as caught:
        TuringMachine(**{**SOUND, **change})
    assert str(caught.value) == f"TuringMachine: {message}"


def test_a_word_is_over_the_alphabet() -> None:
    with pytest.raises(UsageError) as caught:
        next(palindromes().trace("abc", 10))
    assert str(caught.value) == "TuringMachine: word: unknown symbol 'c'; symbols are _, a, b"
