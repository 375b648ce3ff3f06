"""Sequential digits: an image of 8 × 8 pixels is read one pixel at a time, row by row, and named at the end.

The images are scikit-learn's `load_digits`: 1,797 handwritten digits of the test set of Alpaydin & Kaynak 1998 (UCI),
split once and for all into 1,300 to learn from, 147 to choose the best weights by, and 350 to test on. As 1,300 are
soon learnt by heart, each is shown a little changed every time: moved sideways by up to one pixel, and with noise.
Source: after Le, Jaitly & Hinton 2015, section 4.2, who read the larger images of MNIST so.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch.nn import functional

from throughtime.data.sequences import GeneratedSource, Sequences
from throughtime.errors import UsageError
from throughtime.models import SequenceSummary
from throughtime.tasks.experiments.experiment import Experiment

CLASSES = 10
SIDE = 8
NOISE = 0.1  # standard deviation, where black is 1
DROPOUT = 0.2
_TRAIN, _VALID = 1300, 147


class Split(NamedTuple):
    """Numbers of images (N,), no image in two parts."""

    train: torch.Tensor
    valid: torch.Tensor
    test: torch.Tensor


def images() -> Sequences:
    """All 1,797: inputs (64, N, 1) from 0 to 1, targets the digits (N,).

    Raises:
        UsageError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UsageError(
            "digits: expected scikit-learn, which has the images, got none; pip install 'throughtime[experiments]'"
        ) from None
    found = load_digits()
    pixels = torch.tensor(found.data, dtype=torch.float32) / 16  # (N, 64), of 0..16
    return Sequences(torch.tensor(found.target, dtype=torch.int64), pixels.T[..., None], summary=True)


def split(number: int) -> Split:
    """The parts, the same ones always."""
    order = torch.randperm(number, generator=torch.Generator().manual_seed(0))
    return Split(*torch.tensor_split(order, (_TRAIN, _TRAIN + _VALID)))


def changed(data: Sequences, number: int, generator: torch.Generator) -> Sequences:
    """So many images drawn from `data`, each moved by -1, 0 or 1 columns, with Gaussian noise on every pixel."""
    drawn = data.select(torch.randint(len(data), (number,), generator=generator))
    assert drawn.inputs is not None
    wide = functional.pad(drawn.inputs.reshape(SIDE, SIDE, number), (0, 0, 1, 1))  # (row, column + 1, N)
    columns = torch.arange(SIDE)[:, None] + torch.randint(0, 3, (number,), generator=generator)  # (column, N)
    moved = wide.gather(1, columns.expand(SIDE, SIDE, number))  # (row, column, N)
    noisy = moved + NOISE * torch.randn(moved.shape, generator=generator)
    return replace(drawn, inputs=noisy.reshape(SIDE * SIDE, number, 1))


def experiment(*, batch_size: int = 50) -> Experiment:
    """Which digit it is, by a network that answers after the last pixel.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    everything = images()
    train, valid, test = (everything.select(rows) for rows in split(len(everything)))
    return Experiment(
        name="sequential digits, 8 × 8 pixels as 64 steps",
        model=partial(SequenceSummary, input_size=1, output_size=CLASSES, dropout=DROPOUT),
        data=lambda seed: GeneratedSource(partial(changed, train), batch_size, seed=seed),
        valid=valid,
        test=test,
        curve="loss",
        axis="nats per image",
        baselines={"chance": torch.tensor(float(CLASSES)).log().item()},
    )
