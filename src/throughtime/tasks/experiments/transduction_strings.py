"""Random strings of letters to be reversed or copied, longer ones than any that was trained on among them.

    x ~ letters, length uniform on 1..L in training and each of 1..M alike in the test, M > L
    reversal: y(t) = x(τ+1-t)          copying: y(t) = x(t)

No string is shown twice in training, but for short ones, of which there are few: every letter has to be looked up, and
none can be known by heart.
Source: Graves, Wayne & Danihelka 2014, section 4.1 (copying); Grefenstette et al. 2015 (reversal, longer than trained).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from string import ascii_lowercase

import torch

from throughtime.errors import UsageError
from throughtime.storage import write_file
from throughtime.tasks.experiments.transduction import Files

TASKS: Mapping[str, Callable[[str], str]] = {"reversal": lambda text: text[::-1], "copying": lambda text: text}
_VALID = 500
_SEED = 1_000_001


def strings(lengths: Iterable[int], generator: torch.Generator) -> list[str]:
    """One random string of letters of each length."""
    return [
        "".join(ascii_lowercase[place] for place in torch.randint(26, (length,), generator=generator).tolist())
        for length in lengths
    ]


def write(folder: Path, task: str, *, pairs: int, trained_to: int, tested_to: int, each: int) -> Files:
    """The same files of pairs at every call: train.tsv, valid.tsv and test.tsv in `folder`.

    Args:
        folder: where they go.
        task: of TASKS.
        pairs: to train on, of 1..`trained_to` letters; 500 more like them are held out to choose weights by.
        trained_to: letters, at most, in training.
        tested_to: letters, at most, in the test.
        each: test strings of each length.

    Raises:
        UsageError: an unknown task, or lengths that leave nothing beyond those of training.
        StorageError: the disk is full, read-only or gone.
    """
    if task not in TASKS:
        raise UsageError(f"strings: task must be one of {', '.join(TASKS)}, got {task!r}")
    if not 1 <= trained_to < tested_to:
        raise UsageError(
            f"strings: expected 1 <= trained_to < tested_to, got {trained_to} and {tested_to}; test longer strings"
        )
    generator = torch.Generator().manual_seed(_SEED)
    test = strings([length for length in range(1, tested_to + 1) for _ in range(each)], generator)
    drawn = torch.randint(1, trained_to + 1, (_VALID + pairs,), generator=generator).tolist()
    seen = strings(drawn, generator)
    files = Files(*(folder / f"{name}.tsv" for name in Files._fields))
    for path, sources in zip(files, (seen[_VALID:], seen[:_VALID], test), strict=True):
        write_file(path, "".join(f"{source}\t{TASKS[task](source)}\n" for source in sources))
    return files
