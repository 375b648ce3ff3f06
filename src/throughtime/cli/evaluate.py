"""`throughtime evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from throughtime.cli.output import write, write_json


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder of a trained model.", metavar="RUN")],
    data: Annotated[
        list[str],
        typer.Option(
            help="Text: files, folders, globs or - (standard input); several may follow one --data.", metavar="PATH..."
        ),
    ],
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
    column: Annotated[
        str | None, typer.Option(help="Column with the text in .jsonl, .csv and .parquet. [default: as in training]")
    ] = None,
    errors: Annotated[
        Literal["strict", "replace"] | None,
        typer.Option(help="Bytes that are not UTF-8: stop, or read U+FFFD. [default: as in training]"),
    ] = None,
) -> None:
    """Measure how well a trained model predicts a text."""
    from throughtime.tasks import language

    results = language.evaluate(run, data, column=column, errors=errors)
    if json:
        write_json(results)
    else:
        write(_table(results))


def _table(results: Mapping[str, Any]) -> str:
    names = [name.replace("_", " ") for name in results]
    shown = [f"{value:,.4f}" if isinstance(value, float) else f"{value:,}" for value in results.values()]
    width, digits = max(map(len, names)), max(map(len, shown))
    return "".join(f"{name:<{width}}  {value:>{digits}}\n" for name, value in zip(names, shown, strict=True))
