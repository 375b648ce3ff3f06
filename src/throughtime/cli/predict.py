"""`throughtime predict`."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from throughtime.cli.answers import Tally, as_line, as_object, as_table
from throughtime.cli.answers_file import STANDARD, answers_file, refuse_overwriting
from throughtime.cli.output import note, raise_if_interrupted
from throughtime.cli.right_command import expect_task
from throughtime.errors import UsageError


class _Style(StrEnum):
    """What an answer looks like."""

    LINE = "line"
    TABLE = "table"
    OBJECT = "object"


def predict(
    run: Annotated[Path, typer.Argument(help="Run folder of a model of pairs.", metavar="RUN")],
    input_: Annotated[
        str,
        typer.Option(
            "--input",
            help="Sources: a file with one a line, the first field of a .tsv, a column of .csv, .jsonl or .parquet; "
            "- is standard input, answered as it comes.",
            metavar="FILE",
        ),
    ] = STANDARD,
    output: Annotated[
        str, typer.Option(help="Answers, in the order of the sources; - is standard output.", metavar="FILE")
    ] = STANDARD,
    together: Annotated[
        list[Path] | None,
        typer.Option(
            "--with",
            help="Other runs of the same vocabularies that answer together with it, by the mean of their "
            "probabilities; several may follow one --with.",
            metavar="RUN...",
        ),
    ] = None,
    beam: Annotated[
        int | None, typer.Option(help="Beginnings kept at each step; 1: greedy. [default: as in training]", min=1)
    ] = None,
    n_best: Annotated[
        int | None,
        typer.Option(
            help="Answers for each source; the beam is not widened for them. [default: as in training]", min=1
        ),
    ] = None,
    scores: Annotated[bool, typer.Option("--scores", help="Each answer with its log p; see below.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line for each source, with the scores of all tokens.")
    ] = False,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens of an answer, at most. [default: as in training]", min=0)
    ] = None,
    minimum_length: Annotated[
        int | None, typer.Option(help="Tokens of an answer, at least. [default: as in training]", min=0)
    ] = None,
    length_penalty: Annotated[
        float | None,
        typer.Option(help="Above 0, long answers lose less by their length (GNMT). [default: as in training]"),
    ] = None,
    coverage_penalty: Annotated[
        float | None,
        typer.Option(help="Above 0, answers lose by what they leave out (GNMT). [default: as in training]"),
    ] = None,
    no_repeat_ngram: Annotated[
        int | None, typer.Option(help="No run of so many tokens comes twice in an answer; 0: off.", min=0)
    ] = None,
    prefix: Annotated[str | None, typer.Option(help="What every answer begins with.", metavar="TEXT")] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            help="What every answer holds; several may follow one --require. Of BPE, with a space first where it is to "
            "stand behind another word.",
            metavar="TEXT...",
        ),
    ] = None,
    ban: Annotated[
        list[str] | None,
        typer.Option(
            help="What no answer holds; several may follow one --ban. Of BPE, with a space before it and without, but "
            "not as a part of longer tokens.",
            metavar="TEXT...",
        ),
    ] = None,
    source_column: Annotated[str | None, typer.Option(help="Column of the sources. [default: source]")] = None,
    errors: Annotated[
        Literal["strict", "replace"], typer.Option(help="Bytes that are not UTF-8: stop, or read U+FFFD.")
    ] = "strict",
) -> None:
    """Answer sources with a model that was trained on pairs: translate, pronounce, normalise.

    One line for each source: its best answer; an empty one for an empty source. With --n-best or --scores one line for
    each answer: number of the source, rank, log p in nats, answer, with tabs between them; the answer to an empty
    source has no score. Line ends within an answer are written \\n and \\r, tabs \\t; with --json texts are as they
    are.

    --output FILE is replaced once all is answered. Options that are not given are those of [generation] in the run's
    config.toml; --prefix, --require and --ban are split as the targets were trained on.
    """
    for one in (run, *(together or ())):
        expect_task(one, "transduce", "predict")
    if input_ != STANDARD and Path(input_).expanduser().is_dir():
        raise UsageError(f"predict: --input {input_} is a folder; name a file in it")
    refuse_overwriting(input_, output)
    given = {
        "beam": beam, "n_best": n_best, "max_length": max_length, "minimum_length": minimum_length,
        "length_penalty": length_penalty, "coverage_penalty": coverage_penalty, "no_repeat_ngram": no_repeat_ngram,
        "prefix": prefix, "required": require, "banned": ban,
    }  # fmt: skip
    style = _Style.OBJECT if json else _Style.TABLE if scores or n_best else _Style.LINE
    changes = {name: value for name, value in given.items() if value is not None}
    with answers_file(output) as write:
        tally = _answer_all([run, *(together or [])], _sources(input_, source_column, errors), changes, style, write)
    for line in tally.lines():
        note(line)


def _answer_all(
    runs: list[Path],
    sources: tuple[Iterator[tuple[str, str]], Callable[[], bool] | None],
    search: dict[str, Any],
    style: _Style,
    write: Callable[[str], None],
) -> Tally:
    from throughtime.tasks import transduce

    transducer = transduce.transducer(runs[0], together=runs[1:], **search)
    tally = Tally(transducer.max_source_length, transducer.config.max_length)
    places: deque[str] = deque()  # of the sources that are read and not answered yet
    named, ready = sources

    def texts() -> Iterator[str]:
        for where, text in named:
            places.append(where)
            yield text

    for number, found in enumerate(transducer.stream(texts(), ready=ready), start=1):
        raise_if_interrupted()
        if style == _Style.LINE:
            write(as_line(found))
        else:
            write(as_object(found) if style == _Style.OBJECT else as_table(number, found))
        tally.add(places.popleft(), found)
    return tally


def _sources(
    path: str, column: str | None, errors: Literal["strict", "replace"]
) -> tuple[Iterator[tuple[str, str]], Callable[[], bool] | None]:
    """The sources as ("file:line", text), and what tells whether another is there; None where there always is."""
    from throughtime.data.pairs import read_sources

    if path != STANDARD:
        return read_sources(path, source_column=column, errors=errors), None
    from throughtime.cli.incoming import Incoming

    incoming = Incoming(sys.stdin.buffer)
    return read_sources(path, source_column=column, errors=errors, standard_input=incoming), incoming.ready
