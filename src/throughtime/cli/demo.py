"""`throughtime demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    run: Annotated[Path, typer.Option(help="Run folder: the model, its checkpoints, its curve.")] = Path("runs/demo"),
    minutes: Annotated[float, typer.Option(help="Time to train, in minutes.", min=0.01)] = 2.8,
) -> None:
    """Train on Python's own standard library, evaluate, write some text.

    The text is the library's source, which is on every machine, tests left out and 5 % of the files held out."""
    from throughtime.tasks import language

    language.demo(run, minutes)
