"""Three machines to run: one that counts, one that decides a language, and one that is busy."""

from __future__ import annotations

from throughtime.universal.machine import TuringMachine


def binary_increment() -> TuringMachine:
    """n → n + 1 in binary, the most significant digit first; it halts on the first digit of the result."""
    return TuringMachine(
        states=["right", "carry", "back", "done"],
        symbols=["_", "0", "1"],
        blank="_",
        transitions={
            ("right", "0"): ("right", "0", "R"),
            ("right", "1"): ("right", "1", "R"),
            ("right", "_"): ("carry", "_", "L"),
            ("carry", "1"): ("carry", "0", "L"),
            ("carry", "0"): ("back", "1", "L"),
            ("carry", "_"): ("back", "1", "L"),
            ("back", "0"): ("back", "0", "L"),
            ("back", "1"): ("back", "1", "L"),
            ("back", "_"): ("done", "_", "R"),
        },
        start="right",
        halting=["done"],
    )


def palindromes() -> TuringMachine:
    """Whether a word over a and b is a palindrome: it halts in "accept" or in "reject".

    It takes the first letter away, runs to the last, compares, takes that away, and runs back: a number of steps
    that grows with the square of the length.
    """
    transitions = {("first", "_"): ("accept", "_", "S")}
    for letter, other in (("a", "b"), ("b", "a")):
        transitions |= {
            ("first", letter): (f"carry {letter}", "_", "R"),
            (f"carry {letter}", letter): (f"carry {letter}", letter, "R"),
            (f"carry {letter}", other): (f"carry {letter}", other, "R"),
            (f"carry {letter}", "_"): (f"compare {letter}", "_", "L"),
            (f"compare {letter}", letter): ("back", "_", "L"),
            (f"compare {letter}", other): ("reject", other, "S"),
            (f"compare {letter}", "_"): ("accept", "_", "S"),
            ("back", letter): ("back", letter, "L"),
        }
    transitions["back", "_"] = ("first", "_", "R")
    states = ["first", "carry a", "carry b", "compare a", "compare b", "back", "accept", "reject"]
    return TuringMachine(
        states=states,
        symbols=["_", "a", "b"],
        blank="_",
        transitions=transitions,
        start="first",
        halting=["accept", "reject"],
    )


def busy_beaver() -> TuringMachine:
    """Of all machines with four states and two symbols that halt on an empty tape, the one that runs longest.

    It halts after 107 steps with 13 ones on the tape.

    Source: Brady 1983, "The determination of the value of Rado's noncomputable function Σ(k) for four-state Turing
    machines".
    """
    return TuringMachine(
        states=["A", "B", "C", "D", "halt"],
        symbols=["0", "1"],
        blank="0",
        transitions={
            ("A", "0"): ("B", "1", "R"),
            ("A", "1"): ("B", "1", "L"),
            ("B", "0"): ("A", "1", "L"),
            ("B", "1"): ("C", "0", "L"),
            ("C", "0"): ("halt", "1", "R"),
            ("C", "1"): ("D", "1", "L"),
            ("D", "0"): ("D", "1", "R"),
            ("D", "1"): ("A", "0", "R"),
        },
        start="A",
        halting=["halt"],
    )
