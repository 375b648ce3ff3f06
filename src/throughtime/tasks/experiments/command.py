"""The command line that the programs of the experiments share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from throughtime.errors import ThroughtimeError
from throughtime.tasks.experiments.experiment import CELLS, Experiment, run, table, write_results
from throughtime.tasks.experiments.picture import draw


def main(
    description: str,
    make: Callable[..., Experiment],
    *,
    length: int | None = None,
    arguments: Sequence[str] | None = None,
    **defaults: Any,
) -> None:
    """Run an experiment as the command line asks: a table on stdout, results.json and curves.png in the run's folder.

    Args:
        description: for --help.
        make: the experiment, of batch_size and, where it has one, length.
        length: default of --length; None: the sequences are as long as they are.
        arguments: in place of those of the process.
        defaults: of steps, hidden_size, batch_size, learning_rate and the other options.
    """
    options = _parser(description, length, defaults).parse_args(arguments)
    torch.set_num_threads(options.threads)
    # A gradient that vanishes becomes denormal on its way, and processors are ten times slower at such numbers.
    torch.set_flush_denormal(True)
    sizes = {"batch_size": options.batch_size} | ({} if length is None else {"length": options.length})
    settings = {
        "hidden_size": options.hidden_size,
        "max_steps": options.steps,
        "evaluate_every": options.evaluate_every,
        "learning_rate": options.learning_rate,
        "gradient_clip": options.gradient_clip,
        "weight_decay": 0.0,
    }
    try:
        experiment = make(**sizes)
        rows = run(
            experiment,
            options.run,
            cells=options.cells,
            seeds=options.seeds,
            resume=options.resume,
            report=lambda row: print(f"{experiment.name}: {row.cell}, seed {row.seed}: {row.ended}", file=sys.stderr),
            **settings,
        )
        write_results(
            experiment, rows, options.run / "results.json", settings | sizes | {"longest_lag": experiment.longest_lag}
        )
        draw(experiment, rows, options.run / "curves.png")
    except ThroughtimeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(f"{experiment.name}\n\n{table(rows)}\n")
    print("\n".join(f"{name}: {value:.4g} ({experiment.axis})" for name, value in experiment.baselines.items()))


def _parser(description: str, length: int | None, defaults: dict[str, Any]) -> argparse.ArgumentParser:
    """The options, with the experiment's own defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    if length is not None:
        add("--length", type=int, default=length, help="T (%(default)s)")
    add("--cells", nargs="+", choices=list(CELLS), default=list(CELLS), help="which of %(choices)s (all)")
    add("--seeds", nargs="+", type=int, default=[0], help="each draws weights and training data (%(default)s)")
    add("--run", type=Path, required=True, help="folder for a run folder of each cell, results.json and curves.png")
    add("--resume", action="store_true", help="go on with the run folders that are there")
    add("--steps", type=int, help="updates of each cell (%(default)s)")
    add("--evaluate-every", type=int, help="steps between points of the curve (%(default)s)")
    add("--hidden-size", type=int, help="units (%(default)s)")
    add("--batch-size", type=int, help="sequences (%(default)s)")
    add("--learning-rate", type=float, help="highest, of AdamW with a cosine schedule (%(default)s)")
    add("--gradient-clip", type=float, help="largest norm of the gradient (%(default)s)")
    add("--threads", type=int, default=1, help="of the processor (%(default)s)")
    parser.set_defaults(**{"batch_size": 50, "gradient_clip": 1.0} | defaults)
    return parser
