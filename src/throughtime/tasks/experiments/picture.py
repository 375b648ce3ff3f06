"""Learning curves of several cells in one picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from throughtime.storage import write_file
from throughtime.tasks.experiments.experiment import Experiment, Row

# Lines, markers and shades differ, so that a grey print stays legible.
_STYLES: dict[str, dict[str, Any]] = {
    "rnn": {"color": "#8c8c8c", "linestyle": "-", "marker": "s"},
    "lstm": {"color": "#103a5c", "linestyle": "-", "marker": "o"},
    "gru": {"color": "#b3541e", "linestyle": "--", "marker": "^"},
    "irnn": {"color": "#4b7f52", "linestyle": "-.", "marker": "x"},
}


def draw(experiment: Experiment, rows: Sequence[Row], path: Path) -> None:
    """The figure `experiment.curve` on held-out sequences over the steps of training, as a PNG at `path`.

    A line for each cell, the median of its seeds. Dotted lines are the experiment's baselines.

    Raises:
        StorageError: the disk is full, read-only or gone.
    """
    # The object interface, not pyplot: no backend is chosen for the user's own program.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for cell in dict.fromkeys(row.cell for row in rows if row.curve):
        points: dict[int, list[float]] = {}
        for step, value in (point for row in rows if row.cell == cell for point in row.curve):
            points.setdefault(step, []).append(value)
        every = max(1, len(points) // 10)
        medians = [median(values) for values in points.values()]
        axes.plot(list(points), medians, label=cell, linewidth=1.5, markersize=5, markevery=every, **_STYLES[cell])
    for name, value in experiment.baselines.items():
        axes.axhline(value, color="black", linestyle=":", linewidth=1)
        axes.annotate(name, (1, value), (-4, 3), ("axes fraction", "data"), "offset points", ha="right", fontsize=8)
    axes.set_yscale("log")
    axes.set_title(experiment.name)
    axes.set_xlabel("training step")
    axes.set_ylabel(f"{experiment.axis}, held-out")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_file(path, picture.getvalue())
