"""Turing machines with one tape, and their direct simulation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from throughtime.errors import UsageError

MOVES = ("L", "R", "S")


class Configuration(NamedTuple):
    """A machine at one moment: its state, the tape left of the head, and the tape from the head on.

    Both parts are in reading order. What is blank for ever is left out: `left` does not begin, and `right` does not
    end, with a blank. So two configurations are equal exactly when the machine cannot tell them apart.
    """

    state: str
    left: tuple[str, ...]
    right: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TuringMachine:
    """A deterministic machine with one tape, without ends on either side.

    Attributes:
        states: every state, the halting ones among them.
        symbols: the tape's alphabet, the blank among it.
        blank: what stands on every cell that was never written.
        transitions: from (state, symbol under the head) to (new state, symbol written, move of the head), for every
            symbol in every state that does not halt; the move is "L", "R", or "S" (stay).
        start: the first state.
        halting: the states in which the machine rests.

    Raises:
        UsageError: the parts do not make a machine: unknown states or symbols, a transition that is missing, or one
            out of a halting state.
    """

    states: Sequence[str]
    symbols: Sequence[str]
    blank: str
    transitions: Mapping[tuple[str, str], tuple[str, str, str]]
    start: str
    halting: Sequence[str]

    def __post_init__(self) -> None:
        for what, names in (("states", self.states), ("symbols", self.symbols)):
            if len(set(names)) < len(names) or not all(names):
                raise UsageError(f"TuringMachine: {what} must be different names, none of them empty, got {[*names]}")
        self._check("blank", self.blank, "symbol")
        self._check("start", self.start, "state")
        for state in self.halting:
            self._check("halting", state, "state")
        for (state, symbol), (after, written, move) in self.transitions.items():
            who = f"transition from ({state!r}, {symbol!r})"
            for kind, name in (("state", state), ("symbol", symbol), ("state", after), ("symbol", written)):
                self._check(who, name, kind)
            if move not in MOVES:
                raise UsageError(f"TuringMachine: {who}: move must be one of {', '.join(MOVES)}, got {move!r}")
            if state in self.halting:
                raise UsageError(f"TuringMachine: {who}: a halting state rests; take it out of halting, or this away")
        for state in self.states:
            for symbol in self.symbols:
                if state not in self.halting and (state, symbol) not in self.transitions:
                    raise UsageError(
                        f"TuringMachine: no transition from ({state!r}, {symbol!r}); give one, to a halting state "
                        "where the machine should rest"
                    )

    def _check(self, who: str, name: str, kind: str) -> None:
        known = self.states if kind == "state" else self.symbols
        if name not in known:
            raise UsageError(f"TuringMachine: {who}: unknown {kind} {name!r}; {kind}s are {', '.join(known)}")

    def begin(self, word: Sequence[str]) -> Configuration:
        """The start state, with the head on the first symbol of `word` on a tape that is blank elsewhere.

        Raises:
            UsageError: a symbol of the word is not in the alphabet.
        """
        for symbol in word:
            self._check("word", symbol, "symbol")
        return Configuration(self.start, (), self._without_blanks(word))

    def halts(self, configuration: Configuration) -> bool:
        """Whether the machine rests."""
        return configuration.state in self.halting

    def step(self, configuration: Configuration) -> Configuration:
        """The configuration one step later; a machine that has halted stays as it is."""
        if self.halts(configuration):
            return configuration
        state, left, right = configuration
        head, rest = (right[0], right[1:]) if right else (self.blank, ())
        after, written, move = self.transitions[state, head]
        if move == "R":
            return self.configuration(after, (*left, written), rest)
        if move == "L":
            beside = left[-1] if left else self.blank
            return self.configuration(after, left[:-1], (beside, written, *rest))
        return self.configuration(after, left, (written, *rest))

    def trace(self, word: Sequence[str], max_steps: int) -> Iterator[Configuration]:
        """The configurations from the first on, up to the one that halts, or after `max_steps` steps.

        Raises:
            UsageError: a symbol of the word is not in the alphabet.
        """
        configuration = self.begin(word)
        yield configuration
        for _ in range(max_steps):
            if self.halts(configuration):
                return
            configuration = self.step(configuration)
            yield configuration

    def configuration(self, state: str, left: Sequence[str], right: Sequence[str]) -> Configuration:
        """The configuration with the blanks that go on for ever left out."""
        return Configuration(state, self._without_blanks(left[::-1])[::-1], self._without_blanks(right))

    def _without_blanks(self, symbols: Sequence[str]) -> tuple[str, ...]:
        """`symbols` without the blanks at the end."""
        kept = len(symbols)
        while kept and symbols[kept - 1] == self.blank:
            kept -= 1
        return tuple(symbols[:kept])
