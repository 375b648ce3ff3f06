"""The command line that the programs comparing encoder-decoders share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from throughtime.errors import ThroughtimeError
from throughtime.tasks.experiments.transduction import FIGURES, Files, Row, run
from throughtime.tasks.experiments.transduction_report import draw, lengths, totals, write_results


def parser(description: str, models: Mapping[str, Sequence[str]], **defaults: Any) -> argparse.ArgumentParser:
    """The options that all have: `models` by their names, and `defaults` of steps, hidden_size and the others."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = options.add_argument
    add("--run", type=Path, required=True, help="folder for a run folder of each model, results.json and lengths.png")
    add("--resume", action="store_true", help="go on with the run folders that are there")
    add("--models", nargs="+", choices=list(models), default=list(models), help="which of %(choices)s (all)")
    add("--seeds", nargs="+", type=int, default=[0], help="each draws weights and the order of batches (%(default)s)")
    add("--steps", type=int, help="updates of each model (%(default)s)")
    add("--hidden-size", type=int, help="units of the encoder's two directions together, and of the decoder "
        "(%(default)s)")  # fmt: skip
    add("--embedding-size", type=int, default=64, help="of a letter (%(default)s)")
    add("--batch-size", type=int, help="pairs (%(default)s)")
    add("--learning-rate", type=float, default=3e-3, help="highest, of AdamW with a cosine schedule (%(default)s)")
    add("--threads", type=int, default=1, help="of the processor (%(default)s)")
    options.set_defaults(**defaults)
    return options


def compare(
    given: argparse.Namespace,
    models: Mapping[str, Sequence[str]],
    tasks: Mapping[str, Callable[[], Files]],
    *,
    settings: Sequence[str] = (),
    bounds: Sequence[int],
    max_length: int,
    trained_to: int | None = None,
) -> None:
    """Train and judge as the options say: tables on stdout, results.json and lengths.png in the run's folder.

    Args:
        given: the options of `parser`.
        models: what sets each apart, by its name.
        tasks: where the pairs of each task are, by its name.
        settings: further "section.key=value" of all models.
        bounds: the least source length of each group.
        max_length: tokens of an answer, at most.
        trained_to: the greatest source length of training, for the picture.
    """
    torch.set_num_threads(given.threads)
    common = [
        f"training.max_steps={given.steps}",
        f"training.evaluate_every={max(1, given.steps // 10)}",
        "training.evaluate_sources=0",
        f"training.batch_size={given.batch_size}",
        f"training.learning_rate={given.learning_rate}",
        f"model.hidden_size={given.hidden_size}",
        f"model.embedding_size={given.embedding_size}",
        *settings,
    ]
    chosen = {name: models[name] for name in given.models}
    results: dict[str, list[Row]] = {}
    try:
        for task, place in tasks.items():
            results[task] = run(
                chosen,
                place(),
                given.run / task,
                bounds=bounds,
                settings=common,
                max_length=max_length,
                seeds=given.seeds,
                resume=given.resume,
                report=partial(_report, task),
            )
            write_results(results, given.run / "results.json", {"common": common, "models": chosen})
        draw(results, given.run / "lengths.png", trained_to=trained_to)
    except ThroughtimeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    for task, rows in results.items():
        print("\n\n".join([task, totals(rows), *(lengths(rows, name) for name in (*FIGURES, "written"))]) + "\n")


def _report(task: str, row: Row) -> None:
    figures = ", ".join(f"{name.replace('_', ' ')} {row.figures[name]:.1%}" for name in FIGURES)
    print(f"{task}: {row.name}, seed {row.seed}: {figures}", file=sys.stderr)
