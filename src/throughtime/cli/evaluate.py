"""`throughtime evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from throughtime.cli.output import note, write, write_json
from throughtime.errors import RunFolderError, UsageError


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder of a trained model.", metavar="RUN")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Text, or pairs where the run is one of pairs: files, folders, globs or - (standard input); several "
            "may follow one --data. A design's run is evaluated on the held-out sequences that its folder keeps, 16 at "
            "most.",
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
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            help="Pairs: exact_match, token_error_rate, bleu (of 1 to 4 words in a row, as many as answers have), "
            "chrf; several may follow one --metrics. [default: as in training]",
            metavar="NAME...",
        ),
    ] = None,
    beam: Annotated[
        int | None,
        typer.Option(help="Pairs: beginnings kept at each step; 1: greedy. [default: as in training]", min=1),
    ] = None,
    together: Annotated[
        list[Path] | None,
        typer.Option("--with", help="Pairs: other runs that answer together with it.", metavar="RUN..."),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Pairs, in place of --data: the sources, one a line ...", metavar="FILE")
    ] = None,
    target: Annotated[str | None, typer.Option(help="... and their targets, line by line.", metavar="FILE")] = None,
    source_column: Annotated[
        str | None, typer.Option(help="Pairs: column of the sources. [default: as in training]")
    ] = None,
    target_column: Annotated[
        str | None, typer.Option(help="Pairs: column of the targets. [default: as in training]")
    ] = None,
) -> None:
    """Measure how well a trained model predicts a text, answers sources, or a design sequences.

    Of pairs, several with one source are one question, and any of their targets is a right answer to it.
    """
    reading = {"source_column": source_column, "target_column": target_column}
    asked = {"metrics": metrics, "beam": beam, "with": together, "source": source, "target": target, **reading}
    of_pairs = {name: value for name, value in asked.items() if value is not None}
    if _is_of_pairs(run):
        if column is not None:
            raise UsageError("evaluate: --column is for text; name --source-column and --target-column")
        results = _of_pairs(run, data, {**of_pairs, **({} if errors is None else {"errors": errors})})
    elif of_pairs:
        option = f"--{next(iter(of_pairs)).replace('_', '-')}"
        raise UsageError(f"evaluate: {option} is for runs of train transduce, which {run} is not; leave it out")
    else:
        results = _of_text(run, data, column, errors) if data else _of_kept_sequences(run)
    if json:
        write_json(results)
    else:
        write(_table(results))


def _is_of_pairs(run: Path) -> bool:
    from throughtime.training.run_folder import RunFolder

    try:
        return RunFolder.task_of(run) == "transduce"
    except RunFolderError:
        return False  # what is the matter with it, they tell who open it


def _of_pairs(run: Path, data: list[str] | None, options: dict[str, Any]) -> Mapping[str, Any]:
    source, target, together = (options.pop(name, None) for name in ("source", "target", "with"))
    keys = ("source_column", "target_column", "errors")
    reading: dict[str, Any] = {name: options.pop(name) for name in keys if name in options}
    if data and (source is not None or target is not None):
        raise UsageError(
            "evaluate: expected --data PATH... or two parallel files (--source, --target), got both; leave one out"
        )
    if not data and (source is None or target is None):
        raise UsageError(
            f"run folder {run}: a model of pairs is evaluated on pairs; name them with --data, or two parallel files "
            "with --source and --target"
        )
    if source is not None:
        reading |= {"source": source, "target": target}
    from throughtime.tasks import transduce

    return transduce.evaluate(run, data or [], reading=reading, together=together or [], tell=note, **options)


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
