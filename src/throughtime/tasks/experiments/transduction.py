"""Encoder-decoders side by side on the same pairs: trained alike, and judged by the lengths of the sources.

Each model is a run folder of the task `transduce`, so `throughtime predict`, `evaluate` and `inspect` take it. Answers
are greedy: what is compared is the models, and not the search.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from throughtime.data.tokenizers import Tokenizer
from throughtime.errors import UsageError
from throughtime.tasks import transduce
from throughtime.tasks.pair_metrics import Judged, measured
from throughtime.tasks.transducer import Answered
from throughtime.training.metrics import read_metrics

FIGURES = ("exact_match", "token_error_rate")


class Files(NamedTuple):
    """Files of pairs: to train on, to choose weights by, and to judge by."""

    train: Path
    valid: Path
    test: Path


@dataclass(frozen=True)
class Group:
    """The sources whose lengths are near each other, and how well they were answered.

    least, most: the shortest and the longest source among them, in tokens.
    sources: how many there are.
    exact_match, token_error_rate: as `throughtime.tasks.pair_metrics` has them.
    written: tokens of all answers / tokens of the first references: below 1 where answers end too early.
    """

    least: int
    most: int
    sources: int
    exact_match: float
    token_error_rate: float
    written: float


@dataclass(frozen=True)
class Row:
    """One model, one seed: its figures on the test pairs with the best weights that it had.

    name, seed: which model, and what its weights and the order of its batches were drawn by.
    parameters: their number. steps, best_step: updates done, and after how many the held-out loss was lowest.
    seconds: of training, by the clock.
    figures: loss, exact_match and token_error_rate over all sources. groups: the same by the sources' lengths.
    """

    name: str
    seed: int
    parameters: int
    steps: int
    best_step: int
    seconds: float
    figures: Mapping[str, float] = field(default_factory=dict)
    groups: Sequence[Group] = ()


def by_length(answers: Sequence[tuple[int, Judged]], bounds: Sequence[int], tokenizer: Tokenizer) -> list[Group]:
    """Answers, each with the length of its source, in groups; a group without sources is left out.

    Args:
        answers: length in tokens, and the answer with its references.
        bounds: the least length of each group, rising; the last group has no greatest.
        tokenizer: that of the targets.

    Raises:
        UsageError: bounds that do not rise, or a source shorter than the first of them.
    """
    if not bounds or any(low >= high for low, high in pairwise(bounds)):
        raise UsageError(f"by_length: bounds must rise, got {list(bounds)}; give the least length of each group")
    shortest = min((length for length, _ in answers), default=bounds[0])
    if shortest < bounds[0]:
        raise UsageError(
            f"by_length: expected sources of at least {bounds[0]} tokens, the first bound, got one of {shortest}; "
            "begin with a lower bound"
        )
    groups: list[list[tuple[int, Judged]]] = [[] for _ in bounds]
    for answer in answers:
        groups[bisect_right(bounds, answer[0]) - 1].append(answer)
    return [_group(group, tokenizer) for group in groups if group]


def _group(answers: Sequence[tuple[int, Judged]], tokenizer: Tokenizer) -> Group:
    found = [length for length, _ in answers]
    judged = [one for _, one in answers]
    written = sum(len(tokenizer.encode(one.answer)) for one in judged)
    wanted = sum(len(tokenizer.encode(one.references[0])) for one in judged)
    return Group(
        min(found), max(found), len(found), **measured(FIGURES, judged, tokenizer), written=written / max(wanted, 1)
    )


def run(
    models: Mapping[str, Sequence[str]],
    files: Files,
    folder: Path,
    *,
    bounds: Sequence[int],
    settings: Sequence[str],
    max_length: int,
    seeds: Sequence[int] = (0,),
    resume: bool = False,
    report: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Train each model with each seed, all by the same settings, each into `folder`/name-seed, and judge it.

    Args:
        models: what sets each apart, "section.key=value", by its name.
        files: the pairs.
        folder: where the run folders are made.
        bounds: the least source length of each group.
        settings: what they have in common, "section.key=value".
        max_length: tokens of an answer, at most.
        seeds: each draws weights and the order of the batches.
        resume: go on with the run folders that are there; what has ended is only judged again.
        report: called with each row as soon as it is known.

    Raises:
        UsageError: see `by_length`.
        ConfigError, DataError, RunFolderError, DivergedError, Interrupted, StorageError: see `transduce.train`.
    """
    rows = []
    for seed in seeds:
        for name, keys in models.items():
            place = folder / f"{'-'.join(re.findall('[a-z]+', name))}-{seed}"
            transduce.train(
                place,
                data={"paths": [str(files.train)], "valid": [str(files.valid)]},
                overrides=[*settings, *keys, f"training.seed={seed}"],
                resume=resume and place.exists(),
                tell=lambda line: None,
            )
            rows.append(judge(place, name, seed, files.test, bounds=bounds, max_length=max_length))
            report(rows[-1])
    return rows


def judge(place: Path, name: str, seed: int, test: Path, *, bounds: Sequence[int], max_length: int) -> Row:
    """The figures of a run that has been trained.

    Raises:
        UsageError: see `by_length`.
        DataError, RunFolderError, CheckpointError: see `transduce.evaluate`.
    """
    model, tokenizers, _ = transduce.load(place)
    answers: list[tuple[int, Judged]] = []

    def keep(found: Answered, references: Sequence[str]) -> None:
        text = found.answers[0].text if found.answers else ""
        answers.append((len(found.tokens) + found.cut, Judged(text, tuple(references))))

    results = transduce.evaluate(
        place, [str(test)], metrics=FIGURES, answered=keep, beam=1, n_best=1, max_length=max_length
    )
    records = read_metrics(place / "metrics.jsonl")
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    last: dict[str, Any] = {key: value for record in records for key, value in record.items()}
    return Row(
        name,
        seed,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        steps=int(last["step"]),
        best_step=int(min(evaluations, key=lambda record: float(record["loss"]))["step"]),
        seconds=float(last["seconds"]),
        figures={key: results[key] for key in ("loss", *FIGURES)},
        groups=by_length(answers, bounds, tokenizers.target),
    )
