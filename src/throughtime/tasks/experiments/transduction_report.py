"""What comparisons of encoder-decoders say: tables of Markdown, a picture, and all of it as JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from throughtime.storage import write_file
from throughtime.tasks.benchmarks.machine import describe
from throughtime.tasks.experiments.transduction import FIGURES, Group, Row

_TITLES = {
    "exact_match": "answers exactly right, %",
    "token_error_rate": "token errors, %",
    "written": "tokens written, % of those wanted",
}
# Lines, markers and shades differ, so that a grey print stays legible.
_COLOURS = ("#103a5c", "#b3541e", "#4b7f52", "#8c8c8c", "#7a4b8f", "#c19a2b", "#2f8f9d")
_MARKERS, _LINES = "o^sxDv*", ("-", "--", "-.", ":")


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """A table of Markdown: the first line its heading, the first column to the left and the others to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(
        f"| {' | '.join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])} |"
        for line in (lines[0], rule, *lines[1:])
    )


def totals(rows: Sequence[Row]) -> str:
    """A line for each model and seed: its figures over all sources."""
    heading = ["model", "seed", "parameters", "loss", *(_TITLES[name] for name in FIGURES), "best step", "time"]
    lines = [
        [row.name, str(row.seed), f"{row.parameters:,}", f"{row.figures['loss']:.4f}",
         *(f"{100 * row.figures[name]:.1f}" for name in FIGURES), f"{row.best_step} of {row.steps}",
         f"{row.seconds:.0f} s"]
        for row in rows
    ]  # fmt: skip
    return aligned([heading, *lines])


def lengths(rows: Sequence[Row], figure: str) -> str:
    """A line for each model, a column for each group of lengths: a figure in per cent, the median of the seeds."""
    heading = [f"{_TITLES[figure]}; letters", *(_span(group) for group in rows[0].groups)]
    return aligned([heading, *([name, *(f"{100 * value:.1f}" for value in values)]
                               for name, values in medians(rows, figure).items())])  # fmt: skip


def medians(rows: Sequence[Row], figure: str) -> dict[str, list[float]]:
    """A figure of each group of lengths, by the model's name, the median of its seeds."""
    names = dict.fromkeys(row.name for row in rows)
    return {
        name: [
            median(getattr(group, figure) for group in same)
            for same in zip(*(row.groups for row in rows if row.name == name), strict=True)
        ]
        for name in names
    }


def _span(group: Group) -> str:
    return str(group.least) if group.least == group.most else f"{group.least}–{group.most}"


def draw(tasks: Mapping[str, Sequence[Row]], path: Path, *, trained_to: int | None = None) -> None:
    """Both figures over the sources' length as a PNG at `path`: a row of two pictures for each task.

    A point lies in the middle of its group of lengths; a dotted line stands behind the longest source of training.

    Raises:
        StorageError: the disk is full, read-only or gone.
    """
    # The object interface, not pyplot: no backend is chosen for the user's own program.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4 * len(tasks)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(tasks), len(FIGURES), squeeze=False)
    for (task, rows), pictures in zip(tasks.items(), grid, strict=True):
        middles = [(group.least + group.most) / 2 for group in rows[0].groups]
        for name, axes in zip(FIGURES, pictures, strict=True):
            for place, (model, values) in enumerate(medians(rows, name).items()):
                axes.plot(
                    middles, [100 * value for value in values], label=model, linewidth=1.5, markersize=4,
                    color=_COLOURS[place % 7], marker=_MARKERS[place % 7], linestyle=_LINES[place % 4],
                )  # fmt: skip
            if trained_to is not None:
                axes.axvline(trained_to + 0.5, color="black", linestyle=":", linewidth=1)
            axes.set_title(f"{task}: {_TITLES[name]}", fontsize=10)
            axes.set_xlabel("tokens of the source")
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
    grid[0][0].legend(frameon=False, fontsize=8)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_file(path, picture.getvalue())


def write_results(tasks: Mapping[str, Sequence[Row]], path: Path, settings: Mapping[str, Any]) -> None:
    """All of it as JSON: the settings, the machine, every row with its groups.

    Raises:
        StorageError: the disk is full, read-only or gone.
    """
    content = {
        "settings": dict(settings),
        "machine": describe(),
        "tasks": {task: [asdict(row) for row in rows] for task, rows in tasks.items()},
    }
    write_file(path, json.dumps(content, indent=2) + "\n")
