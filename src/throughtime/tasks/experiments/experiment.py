"""An experiment, and its run: several cells side by side on the same data for the same number of steps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from throughtime.data.sequences import Sequences, Source
from throughtime.errors import DivergedError, UsageError
from throughtime.models import Design
from throughtime.storage import write_file
from throughtime.tasks import design
from throughtime.tasks.benchmarks.machine import describe
from throughtime.training.metrics import Record, read_metrics

CELLS: Mapping[str, Mapping[str, Any]] = {
    "rnn": {"cell": "rnn"},
    "lstm": {"cell": "lstm"},
    "gru": {"cell": "gru"},
    # Le, Jaitly & Hinton 2015: rectified units that begin by copying their state.
    "irnn": {"cell": "rnn", "nonlinearity": "relu", "initialisation": "identity"},
}
_GATED = ("lstm", "gru")


@dataclass(frozen=True, eq=False)
class Experiment:
    """What is learnt, by what kind of design, and how well it is done.

    name: for headings; with the length of the sequences where there is one.
    model: the design, of the keys of a cell and its size.
    data: training batches, drawn by a seed.
    valid, test: held-out sequences, to choose the best weights by and to report; the same for every seed.
    measure: the figures reported, of a trained design on sequences.
    curve: the figure of `design.evaluate` that is drawn over the steps of training; its name for the axis.
    baselines: figures to compare the curve with, by name: what is reached without memory, the best possible.
    longest_lag: for gates that begin as the chrono initialisation has them; None: as usual.
    """

    name: str
    model: Callable[..., Design]
    data: Callable[[int], Source]
    valid: Sequences
    test: Sequences
    curve: str
    axis: str
    baselines: Mapping[str, float]
    measure: Callable[[Design, Sequences], dict[str, float]] = design.evaluate
    longest_lag: int | None = None


@dataclass(frozen=True)
class Row:
    """One cell, one seed: how it ended, and its figures on the test sequences with the best weights it had.

    cell, seed: of CELLS, and what weights and data were drawn by.
    parameters: their number.
    steps, best_step: updates done, and after how many the held-out loss was lowest.
    seconds: of training.
    ended: why training ended; "diverged" when the loss or its gradient was no longer finite.
    figures: what `measure` gives; empty when it diverged before its first evaluation.
    curve: (step, figure) at each evaluation on the held-out sequences.
    """

    cell: str
    seed: int
    parameters: int
    steps: int
    best_step: int
    seconds: float
    ended: str
    figures: Mapping[str, float] = field(default_factory=dict)
    curve: Sequence[tuple[int, float]] = ()


def cell_keys(cell: str, longest_lag: int | None = None) -> dict[str, Any]:
    """The configuration of a cell of CELLS; with a lag the gates of an LSTM or GRU begin as chrono has them.

    Raises:
        UsageError: an unknown cell.
    """
    if cell not in CELLS:
        raise UsageError(f"experiment: cell must be one of {', '.join(CELLS)}, got {cell!r}")
    keys = dict(CELLS[cell])
    if longest_lag is not None and cell in _GATED:
        keys |= {"initialisation": "chrono", "longest_lag": longest_lag}
    return keys


def run(
    experiment: Experiment,
    folder: Path,
    *,
    cells: Iterable[str] = tuple(CELLS),
    seeds: Iterable[int] = (0,),
    hidden_size: int = 128,
    resume: bool = False,
    report: Callable[[Row], None] = lambda row: None,
    **training: Any,
) -> list[Row]:
    """Train each cell with each seed, all by the same settings, each into `folder`/cell-seed.

    Args:
        experiment: what is learnt.
        folder: where the run folders are made; `throughtime inspect flow` and `design.load` take each of them.
        cells: of CELLS.
        seeds: each draws the weights and the training batches.
        hidden_size: units.
        resume: go on with the run folders that are there.
        report: called with each row as soon as it is known.
        training: keys of the section [training].

    Raises:
        UsageError: an unknown cell.
        RunFolderError: a run folder is there already, without `resume`.
        ConfigError, Interrupted, StorageError: see `design.train`.
    """
    todo = [(cell, seed, cell_keys(cell, experiment.longest_lag)) for seed in seeds for cell in cells]
    rows = []
    for cell, seed, keys in todo:
        torch.manual_seed(seed)
        model = experiment.model(**keys, hidden_size=hidden_size)
        rows.append(_row(experiment, model, folder / f"{cell}-{seed}", cell, seed, resume, training))
        report(rows[-1])
    return rows


def _row(
    experiment: Experiment, model: Design, run: Path, cell: str, seed: int, resume: bool, training: Mapping[str, Any]
) -> Row:
    """Train one cell, and measure the best weights it had."""
    try:
        outcome = design.train(
            model,
            experiment.data(seed),
            experiment.valid,
            run,
            resume=resume and run.exists(),
            seed=seed,
            **training,
        )
        ended = outcome.stopped_because
    except DivergedError:
        ended = "diverged"
    records = read_metrics(run / "metrics.jsonl")
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    return Row(
        cell,
        seed,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        steps=_last(records, "step"),
        best_step=min(evaluations, key=_loss)["step"] if evaluations else 0,
        seconds=_last(records, "seconds"),
        ended=ended,
        figures=experiment.measure(design.load(run), experiment.test) if evaluations else {},
        curve=[(record["step"], record[experiment.curve]) for record in evaluations],
    )


def _loss(record: Record) -> float:
    return float(record["loss"])


def _last(records: Sequence[Record], name: str) -> Any:
    """The newest value of that name."""
    return next((record[name] for record in reversed(records) if name in record), 0)


def table(rows: Sequence[Row]) -> str:
    """The rows as a table of Markdown: a line for each cell and seed, a column for each figure."""
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    heading = ["cell", "seed", "parameters", *(name.replace("_", " ") for name in names), "best step", "steps", "time"]
    lines = [
        [
            row.cell,
            str(row.seed),
            f"{row.parameters:,}",
            *(f"{row.figures.get(name, math.nan):.4g}" for name in names),
            str(row.best_step),
            f"{row.steps}{', diverged' if row.ended == 'diverged' else ''}",
            f"{row.seconds:.0f} s",
        ]
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [heading, *lines]) for column in range(len(heading))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    aligned = [
        [text.ljust(width) if not column else text.rjust(width) for column, (text, width) in enumerate(pairs)]
        for pairs in (list(zip(line, widths, strict=True)) for line in [heading, rule, *lines])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in aligned)


def write_results(experiment: Experiment, rows: Sequence[Row], path: Path, settings: Mapping[str, Any]) -> None:
    """All of it as JSON: the settings, the machine, the baselines, every row with its learning curve.

    Raises:
        StorageError: the disk is full, read-only or gone.
    """
    content = {
        "experiment": experiment.name,
        "settings": dict(settings),
        "machine": describe(),
        "baselines": dict(experiment.baselines),
        "rows": [asdict(row) for row in rows],
    }
    write_file(path, json.dumps(content, indent=2) + "\n")
