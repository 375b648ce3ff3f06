"""The demonstration: learn the source of Python's own standard library, then write some."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import NamedTuple

from throughtime.configuration import validate
from throughtime.decoding import GenerationConfig, write_texts
from throughtime.tasks.configuration import LanguageConfiguration
from throughtime.tasks.language import load, train_configured
from throughtime.training.loop import Outcome

PROMPT = "def "
TEMPERATURES = (0.5, 0.8, 1.0)
_LENGTH = 400


class Sample(NamedTuple):
    """A text that the model wrote, its prompt in front, and the temperature it was drawn at."""

    temperature: float
    text: str


class Demonstration(NamedTuple):
    """How the training ended, and what the trained model writes."""

    outcome: Outcome
    samples: list[Sample]


def configuration(minutes: float) -> LanguageConfiguration:
    """A byte-level LSTM that learns as much as it can in so many minutes on two cores."""
    return validate(
        LanguageConfiguration,
        {
            "data": {"paths": ["stdlib:"], "valid_fraction": 0.05, "tokenizer": "bytes"},
            "model": {"cell": "lstm", "hidden_size": 512, "num_layers": 1, "embedding_size": 64},
            "training": {
                "batch_size": 16,
                "window": 64,
                "max_minutes": minutes,
                "learning_rate": 0.004,
                "warmup_steps": 50,
                "evaluate_every": 1600,
            },
            "generation": {"temperature": 0.5},
        },
        where="demo",
    )


def demo(run: Path, minutes: float) -> Demonstration:
    """Train on the standard library for some minutes into the folder `run`, and write a text at each temperature.

    Raises:
        RunFolderError: `run` is taken.
        Interrupted, StorageError, DivergedError: see `throughtime.tasks.language.train`.
    """
    outcome = train_configured(configuration(minutes), run)
    model, tokenizer, _ = load(run)
    samples = []
    for temperature in TEMPERATURES:
        config = GenerationConfig(length=_LENGTH, temperature=temperature, seed=0)
        (text,) = write_texts(model, tokenizer, PROMPT, config)
        samples.append(Sample(temperature, PROMPT + text.text))
    return Demonstration(outcome, samples)


def free_folder(parent: Path, name: str = "demo") -> Path:
    """The first of parent/name, parent/name-2, ... that does not exist yet."""
    names = (parent / (name if number == 1 else f"{name}-{number}") for number in count(1))
    return next(path for path in names if not path.exists())
