"""The demonstration of sequence to sequence: learn to read dates in hundreds of languages, then read some.

Three questions are put to the trained model (`throughtime.tasks.dates` says what is held out, and how): days that it
has not seen; formats that it has not seen, in languages that it knows; languages that it has not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from throughtime.configuration import validate
from throughtime.storage import write_file
from throughtime.tasks.dates import DatePair, DatePairs, Use, date_pairs, forms
from throughtime.tasks.transduce import evaluate, train_configured
from throughtime.tasks.transduce_configuration import TransduceConfiguration
from throughtime.tasks.transducer import Answered
from throughtime.training.loop import Outcome
from throughtime.training.run_folder import RunFolder

# Pairs to train on; to choose the best model by, of held-out days; and to answer each question with.
_TRAIN, _VALID, _ASKED = 200_000, 500, 2_000
# Languages of which a held-out day is shown, for their scripts; of each other question so many texts are.
_SHOWN_LANGUAGES = ("en", "fr", "ru", "el", "ar", "fa", "hi", "th", "am", "ja")
_SHOWN_OTHERS = 3


class Question(NamedTuple):
    """Texts of one kind that the model has not seen.

    name: "days", "forms" or "languages". asked: the number of texts, and exact: the part of them whose day is right in
    every digit. months_seen: the part whose month is a number or has a name that was trained on.
    """

    name: str
    asked: int
    exact: float
    months_seen: float


class Example(NamedTuple):
    """A text, where it is from, the day that it means, and how the model answers."""

    question: str
    use: Use
    target: str
    answered: Answered

    @property
    def right(self) -> bool:
        """Whether the answer is the day that the text means."""
        return self.answered.answers[0].text == self.target


class Demonstration(NamedTuple):
    """How the training ended, how good the model is, and what it makes of some texts, right or wrong.

    ambiguous: texts left out because they do not tell their day, for each that was kept to train on. new_patterns: the
    question "forms" once more, of those of its texts alone whose pattern no form to train on has, in any language.
    """

    outcome: Outcome
    questions: list[Question]
    new_patterns: Question
    examples: list[Example]
    ambiguous: float


def configuration(pairs: Path, minutes: float) -> TransduceConfiguration:
    """A small encoder-decoder over characters that learns what it can in so many minutes on two cores."""
    return validate(
        TransduceConfiguration,
        {
            "data": {"paths": [str(pairs / "train.tsv")], "valid": [str(pairs / "valid.tsv")]},
            "model": {"cell": "gru", "hidden_size": 128, "embedding_size": 64, "bridge": "linear"},
            "training": {
                "batch_size": 128,
                "max_minutes": minutes,
                "learning_rate": 0.004,
                "evaluate_sources": 200,
                # Faster than bf16 in a network as small as this.
                "precision": "fp32",
            },
            "generation": {"beam": 1, "max_length": 20},
        },
        where="demo transduce",
    )


def demo(run: Path, minutes: float, tell: Callable[[str], None] = print) -> Demonstration:
    """Train on dates for some minutes into the folder `run`, and ask the model; the pairs lie beside it as files.

    Raises:
        UsageError: Babel is not installed.
        RunFolderError: `run` is taken.
        Interrupted, StorageError, DivergedError: see `throughtime.tasks.transduce.train`.
    """
    RunFolder.check_free(run)
    pairs = date_pairs(train=_TRAIN, held_out=_VALID + _ASKED)
    folder = pairs_folder(run)
    questions = write_pairs(pairs, folder)
    outcome = train_configured(configuration(folder, minutes), run, tell=tell)
    answers = {name: _answers(run, folder / f"{name}.tsv") for name in questions}
    known = {forms()[pair.form].pattern for pair in pairs.train}
    new = [pair for pair in questions["forms"] if forms()[pair.form].pattern not in known]
    return Demonstration(
        outcome,
        [_question(name, asked, answers[name], pairs) for name, asked in questions.items()],
        _question("forms", new, answers["forms"], pairs),
        [
            Example(name, forms()[pair.form], pair.target, answers[name][pair.source])
            for name, asked in questions.items()
            for pair in _shown(name, asked)
        ],
        pairs.ambiguous,
    )


def pairs_folder(run: Path) -> Path:
    """Where the pairs of a run are: beside it, as a run's folder holds nothing else."""
    return run.with_name(f"{run.name}-pairs")


def write_pairs(pairs: DatePairs, folder: Path) -> dict[str, list[DatePair]]:
    """Write train.tsv, valid.tsv, days.tsv, forms.tsv and languages.tsv; the questions, which are the last three."""
    questions = {"days": pairs.days[_VALID:], "forms": pairs.forms[:_ASKED], "languages": pairs.languages[:_ASKED]}
    for name, part in {"train": pairs.train, "valid": pairs.days[:_VALID], **questions}.items():
        write_file(folder / f"{name}.tsv", "".join(f"{pair.source}\t{pair.target}\n" for pair in part))
    return questions


def _answers(run: Path, path: Path) -> dict[str, Answered]:
    """What a run's model answers to the sources of a file."""
    found: dict[str, Answered] = {}

    def keep(answered: Answered, references: Sequence[str]) -> None:
        found[answered.source] = answered

    evaluate(run, [str(path)], answered=keep)
    return found


def _question(name: str, asked: Sequence[DatePair], answers: Mapping[str, Answered], pairs: DatePairs) -> Question:
    right = sum(answers[pair.source].answers[0].text == pair.target for pair in asked)
    return Question(name, len(asked), right / max(1, len(asked)), pairs.months_seen(asked))


def _shown(name: str, asked: Sequence[DatePair]) -> list[DatePair]:
    """The first texts that name their month: one in each of some languages, or the first few in any."""
    named = [pair for pair in asked if pair.form.month_names]
    if name != "days":
        return named[:_SHOWN_OTHERS]
    of = {
        language: [pair for pair in named if language in forms()[pair.form].languages] for language in _SHOWN_LANGUAGES
    }
    return [found[0] for found in of.values() if found]
