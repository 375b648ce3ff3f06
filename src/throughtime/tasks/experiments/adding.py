"""The adding problem: of many numbers two are marked, and their sum is wanted at the end.

    x(t) = (v(t), m(t)), v(t) ~ U(0, 1), m(t) = 1 at one step of each half and 0 elsewhere; y = Σ_t m(t) v(t)

Whoever always answers 1 has a mean squared error of 1/6, the variance of the sum of two such numbers.
Source: Hochreiter & Schmidhuber 1997, section 5.4, in the form of Le, Jaitly & Hinton 2015, section 4.1, and
Arjovsky, Shah & Bengio 2016, section 5.1.
"""

from __future__ import annotations

from functools import partial

import torch

from throughtime.data.sequences import GeneratedSource, Sequences
from throughtime.errors import UsageError
from throughtime.models import SequenceSummary
from throughtime.tasks.experiments.experiment import Experiment

BASELINE = 1 / 6
_VALID, _TEST = 500, 2000


def sequences(number: int, generator: torch.Generator, *, length: int) -> Sequences:
    """So many sequences of `length` steps: inputs (T, N, 2), targets (N, 1).

    Raises:
        UsageError: fewer than two steps, one for each half.
    """
    if length < 2:
        raise UsageError(f"adding: length must be at least 2 steps, got {length}")
    values = torch.rand(length, number, generator=generator)  # (T, N)
    first = torch.randint(0, length // 2, (number,), generator=generator)
    second = torch.randint(length // 2, length, (number,), generator=generator)
    marks = torch.zeros(length, number).scatter_(0, torch.stack([first, second]), 1.0)  # (T, N)
    return Sequences((values * marks).sum(0)[:, None], torch.stack([values, marks], -1), summary=True)


def experiment(length: int = 600, *, batch_size: int = 50) -> Experiment:
    """Sums over so many steps, by a network that answers at the end."""
    make = partial(sequences, length=length)
    return Experiment(
        name=f"adding problem, T = {length}",
        model=partial(SequenceSummary, input_size=2, output="gaussian", output_size=1),
        data=lambda seed: GeneratedSource(make, batch_size, seed=seed),
        valid=make(_VALID, torch.Generator().manual_seed(1_000_001)),
        test=make(_TEST, torch.Generator().manual_seed(1_000_002)),
        curve="squared_error",
        axis="squared error",
        baselines={"always 1": BASELINE},
        longest_lag=length,
    )
