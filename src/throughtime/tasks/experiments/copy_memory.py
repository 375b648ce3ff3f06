"""The copy memory problem: ten symbols are shown, and wanted again after T steps.

Ten symbols of eight kinds, T - 1 blanks, a delimiter, ten blanks: T + 20 steps. The targets are T + 10 blanks, then the
ten symbols in their order. Whoever knows all of that but the symbols has a loss of 10 log 8 / (T + 20) nats per step.
Source: Hochreiter & Schmidhuber 1997, in the form of Arjovsky, Shah & Bengio 2016, section 5.1.
"""

from __future__ import annotations

import math
from functools import partial

import torch

from throughtime.data.sequences import GeneratedSource, Sequences
from throughtime.errors import UsageError
from throughtime.models import Design, HiddenRecurrent
from throughtime.tasks import design
from throughtime.tasks.experiments.experiment import Experiment
from throughtime.tasks.experiments.outputs import outputs

KINDS = 8
SYMBOLS = 10
BLANK, DELIMITER = KINDS, KINDS + 1
_CATEGORIES = KINDS + 2
_VALID, _TEST = 256, 1000


def baseline(length: int) -> float:
    """The loss of one who remembers nothing, nats per step."""
    return SYMBOLS * math.log(KINDS) / (length + 2 * SYMBOLS)


def sequences(number: int, generator: torch.Generator, *, length: int) -> Sequences:
    """So many sequences with T = `length`: inputs and targets (T + 20, N), of ten categories.

    Raises:
        UsageError: no step between the symbols and their recall.
    """
    if length < 1:
        raise UsageError(f"copy memory: length must be at least 1 step, got {length}")
    symbols = torch.randint(0, KINDS, (SYMBOLS, number), generator=generator)
    inputs = torch.full((length + 2 * SYMBOLS, number), BLANK)
    targets = inputs.clone()
    inputs[:SYMBOLS] = symbols
    inputs[SYMBOLS + length - 1] = DELIMITER
    targets[-SYMBOLS:] = symbols
    return Sequences(targets, inputs)


def measure(model: Design, data: Sequences) -> dict[str, float]:
    """The loss in nats per step, and the share of symbols, and of whole sequences of ten, that are recalled right."""
    results = {"loss": design.evaluate(model, data)["loss"]}
    right = (outputs(model, data).argmax(-1) == data.targets)[-SYMBOLS:]  # (10, N)
    return results | {
        "symbols_recalled": float(right.double().mean()),
        "sequences_recalled": float(right.all(0).double().mean()),
    }


def experiment(length: int = 100, *, batch_size: int = 50) -> Experiment:
    """Recall after so many steps, by a network with an output at every step."""
    make = partial(sequences, length=length)
    return Experiment(
        name=f"copy memory, T = {length}",
        model=partial(HiddenRecurrent, input_size=_CATEGORIES, output_size=_CATEGORIES),
        data=lambda seed: GeneratedSource(make, batch_size, seed=seed),
        valid=make(_VALID, torch.Generator().manual_seed(1_000_001)),
        test=make(_TEST, torch.Generator().manual_seed(1_000_002)),
        curve="loss",
        axis="nats per step",
        baselines={"no memory": baseline(length)},
        measure=measure,
        longest_lag=length + SYMBOLS,
    )
