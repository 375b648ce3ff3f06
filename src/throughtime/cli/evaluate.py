"""`throughtime evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from throughtime.cli.output import write, write_json
from throughtime.errors import UsageError


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder of a trained model.", metavar="RUN")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Text: files, folders, globs or - (standard input); several may follow one --data. A design's run is "
            "evaluated on the held-out sequences that its folder keeps, 16 at most.",
            metavar="PATH...",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
    column: Annotated[
        str | None, typer.Option(help="Column with the text in .jsonl, .csv and .parquet. [default: as in training]")
    ] = None,
    errors: Annotated[
        Literal["strict", "replace"] | None,
        typer.Option(help="Bytes that are not UTF-8: stop, or read U+FFFD. [default: as in training]"),
    ] = None,
) -> None:
    """Measure how well a trained model predicts a text, or a design sequences."""
    results = _of_text(run, data, column, errors) if data else _of_kept_sequences(run)
    if json:
        write_json(results)
    else:
        write(_table(results))


def _of_text(run: Path, data: list[str], column: str | None, errors: Any) -> Mapping[str, Any]:
    from throughtime.tasks import language

    return language.evaluate(run, data, column=column, errors=errors)


def _of_kept_sequences(run: Path) -> Mapping[str, Any]:
    from throughtime.tasks import design
    from throughtime.training.run_folder import RunFolder

    if RunFolder.task_of(run) != design.NAME:
        raise UsageError(f"run folder {run}: a language model is evaluated on a text; name it with --data")
    return design.evaluate(design.load(run), design.held_out(run))


def _table(results: Mapping[str, Any]) -> str:
    names = [name.replace("_", " ") for name in results]
    shown = [f"{value:,.4f}" if isinstance(value, float) else f"{value:,}" for value in results.values()]
    width, digits = max(map(len, names)), max(map(len, shown))
    return "".join(f"{name:<{width}}  {value:>{digits}}\n" for name, value in zip(names, shown, strict=True))
