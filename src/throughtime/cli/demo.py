"""`throughtime demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from throughtime.cli.output import note, write


def demo(
    run: Annotated[
        Path | None,
        typer.Option(
            help="Run folder: the model, its checkpoints, its curve. [default: runs/demo, or runs/demo-2, ...]"
        ),
    ] = None,
    minutes: Annotated[float, typer.Option(help="Time to train, in minutes.", min=0.01)] = 2.8,
) -> None:
    """Train on Python's own standard library, evaluate, write some text.

    The text is the library's source, which is on every machine, tests left out and 5 % of the files held out.
    """
    from throughtime.tasks import demo as task

    folder = run or task.free_folder(Path("runs"))
    note(f"Training a byte-level LSTM on the source of Python's standard library for {minutes:g} minutes ...")
    outcome, samples = task.demo(folder, minutes)
    write(
        f"\nHeld-out files: {outcome.best['bits_per_byte']:.3f} bits per byte "
        f"after {outcome.steps:,} steps (8 would be no knowledge at all).\n"
    )
    for temperature, text in samples:
        write(f"\n--- temperature {temperature:g} {'-' * 60}\n{text}\n")
    write(
        f"\nAll of it is in {folder}; the training curve is {folder / 'curve.png'}. Go on with:\n"
        f'  throughtime generate {folder} --prompt "class " --length 300 --temperature 0.6\n'
        f"  throughtime evaluate {folder} --data FILE.py\n"
        "  throughtime train lm --data FILE.txt --run runs/mine\n"
    )
