"""The embedded Reber grammar: say at each step which symbols may come next, the first choice at the very end again.

    embedded string = B, T or P, a Reber string, the same T or P again, E
    Reber string    = what a walk through GRAMMAR writes, each way out of a node with the same probability

Between the first T or P and its repetition lies a string of any length, so this is a long-range dependency that the
rest of the grammar hides. As published: 256 strings to learn from, 256 others to test on, one-hot symbols; a string is
right when at every step the symbols that may come next have the highest outputs, and a network when all are.
Source: Reber 1967; Cleeremans, Servan-Schreiber & McClelland 1989; Fahlman 1991; Hochreiter & Schmidhuber 1997,
section 5.1.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from throughtime.data.sequences import Sequences, TensorSource
from throughtime.models import Design, HiddenRecurrent
from throughtime.tasks import design
from throughtime.tasks.experiments.experiment import Experiment
from throughtime.tasks.experiments.outputs import outputs

ALPHABET = "BTPSXVE"
# From each node the symbols that may be written, and the node that each leads to.
GRAMMAR: tuple[dict[str, int], ...] = (
    {"B": 1},
    {"T": 2, "P": 3},
    {"S": 2, "X": 4},
    {"T": 3, "V": 5},
    {"X": 3, "S": 6},
    {"P": 4, "V": 6},
    {"E": 7},
    {},
)
STRINGS = 256
_LOG_2 = math.log(2)


class Walk(NamedTuple):
    """An embedded string, and for each of its symbols but the first those that might have stood there."""

    text: str
    choices: tuple[str, ...]


def walk(generator: torch.Generator) -> Walk:
    """A random embedded string."""

    def draw(symbols: str) -> str:
        return symbols[int(torch.randint(len(symbols), (), generator=generator))]

    outer = draw("TP")
    text, choices = "B" + outer, ["TP"]
    node = 0
    while GRAMMAR[node]:
        choices.append("".join(GRAMMAR[node]))
        text += draw(choices[-1])
        node = GRAMMAR[node][text[-1]]
    return Walk(text + outer + "E", (*choices, outer, "E"))


def walks(number: int, generator: torch.Generator, *, other_than: Collection[Walk] = ()) -> list[Walk]:
    """So many random embedded strings, none of `other_than`."""
    taken, found = set(other_than), list[Walk]()
    while len(found) < number:
        candidate = walk(generator)
        if candidate not in taken:
            found.append(candidate)
    return found


def sequences(strings: list[Walk]) -> Sequences:
    """Inputs are the symbols but the last, targets the symbols but the first; categories (T, N), ragged."""
    lengths = torch.tensor([len(string.text) - 1 for string in strings])
    inputs = torch.zeros(int(lengths.max()), len(strings), dtype=torch.int64)
    targets = torch.zeros_like(inputs)
    for row, string in enumerate(strings):
        symbols = torch.tensor([ALPHABET.index(symbol) for symbol in string.text])
        inputs[: len(symbols) - 1, row] = symbols[:-1]
        targets[: len(symbols) - 1, row] = symbols[1:]
    return Sequences(targets, inputs, lengths=lengths)


def measure(model: Design, strings: list[Walk]) -> dict[str, float]:
    """The shares of strings that are right at every step, and at the step of the repeated symbol.

    A step is right when every symbol that may come next has a higher output than every symbol that may not.
    """
    data = sequences(strings)
    o = outputs(model, data)  # (T, N, 7)
    right = legal_highest(o, [string.choices for string in strings])  # (T, N)
    assert data.lengths is not None
    repeated = right.gather(0, data.lengths[None] - 2)[0]  # the last step but one of each string
    return {
        "strings_right": float(right.all(0).double().mean()),
        "repetition_right": float(repeated.double().mean()),
    }


def legal_highest(o: Tensor, choices: list[tuple[str, ...]]) -> Tensor:
    """Whether the outputs (T, N, 7) of all of the choices are above those of all others, (T, N); true past the end."""
    right = torch.ones(o.shape[:2], dtype=torch.bool)
    for row, steps in enumerate(choices):
        legal = torch.tensor([[symbol in step for symbol in ALPHABET] for step in steps])  # (τ, 7)
        own = o[: len(steps), row]
        lowest = own.masked_fill(~legal, math.inf).amin(-1)
        right[: len(steps), row] = lowest > own.masked_fill(legal, -math.inf).amax(-1)
    return right


def _uncertainty(strings: list[Walk]) -> float:
    """The loss of one who knows the grammar and remembers all, nats per symbol."""
    predictions = [len(step) for string in strings for step in string.choices]
    return sum(map(math.log, predictions)) / len(predictions)


def experiment(*, batch_size: int = 32) -> Experiment:
    """What may come next, by a network with an output at every step; the same strings for every seed."""
    generator = torch.Generator().manual_seed(1_000_001)
    train = walks(STRINGS, generator)
    valid = walks(STRINGS, generator, other_than=train)
    test = walks(STRINGS, generator, other_than=train + valid)
    best = _uncertainty(valid)
    symbols = sum(len(string.choices) for string in valid)
    return Experiment(
        name="embedded Reber grammar",
        model=partial(HiddenRecurrent, input_size=len(ALPHABET), output_size=len(ALPHABET)),
        data=lambda seed: TensorSource(sequences(train), batch_size, seed=seed),
        valid=sequences(valid),
        test=sequences(test),
        curve="loss",
        axis="nats per symbol",
        baselines={"knows all but the first choice": best + len(valid) * _LOG_2 / symbols, "knows all": best},
        measure=lambda model, data: (
            {"loss": design.evaluate(model, data)["loss"]}
            | measure(model, test)
            | {f"training_{name}": share for name, share in measure(model, train).items()}
        ),
    )
