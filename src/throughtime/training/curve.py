"""The training curve as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from throughtime.storage import write_file
from throughtime.training.metrics import Record


def draw_curve(records: Sequence[Record], path: Path) -> None:
    """Draw the training and held-out loss of `records` (of metrics.jsonl) over steps as a PNG at `path`.

    The left axis is in nats per target; where evaluations tell "bits_per_byte", a right axis has that unit. Line
    styles and markers tell the curves apart, so that a grey print stays legible. Without records nothing is drawn.

    Raises:
        StorageError: the disk is full, read-only or gone.
    """
    train = [record for record in records if record["kind"] == "train"]
    held_out = [record for record in records if record["kind"] == "evaluation"]
    if not train and not held_out:
        return
    # The object interface, not pyplot: no backend is chosen for the user's own program.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if train:
        axes.plot(_column(train, "step"), _column(train, "loss"), color="#9a9a9a", linewidth=1.0, label="training")
    if held_out:
        best = min(held_out, key=lambda record: float(record["loss"]))
        axes.plot(
            _column(held_out, "step"),
            _column(held_out, "loss"),
            "o-",
            color="#103a5c",
            markersize=4,
            label="held-out",
        )
        axes.annotate(
            f"{best['loss']:.3f}",
            (best["step"], best["loss"]),
            (0, 8),
            textcoords="offset points",
            ha="right",
        )
        if best.get("bits_per_byte") and best["loss"]:
            ratio = best["bits_per_byte"] / best["loss"]
            right = axes.secondary_yaxis("right", functions=(lambda y: y * ratio, lambda y: y / ratio))
            right.set_ylabel("bits per byte")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_file(path, picture.getvalue())


def _column(records: Sequence[Record], name: str) -> list[float]:
    return [float(record[name]) for record in records]
