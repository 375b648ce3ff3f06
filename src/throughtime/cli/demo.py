"""`throughtime demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from throughtime.cli.output import note, write
from throughtime.errors import UsageError

if TYPE_CHECKING:
    from throughtime.tasks.demo_transduce import Demonstration, Example

_LANGUAGE_MINUTES = 2.8
_QUESTIONS = {
    "days": "days that it has not seen",
    "forms": "formats that it has not seen, in languages that it knows",
    "languages": "languages that it has not seen",
}


def demo(
    context: typer.Context,
    run: Annotated[
        Path | None,
        typer.Option(
            help="Run folder: the model, its checkpoints, its curve. [default: runs/demo, or runs/demo-2, ...]"
        ),
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Time to train, in minutes. [default: 2.8]", min=0.01)] = None,
) -> None:
    """Train on Python's own standard library, evaluate, write some text.

    The text is the library's source, which is on every machine, tests left out and 5 % of the files held out.
    """
    if (other := context.invoked_subcommand) is not None:
        if run is not None or minutes is not None:
            raise UsageError(f"demo: options of {other} stand behind its name: throughtime demo {other} --minutes 1")
        return
    from throughtime.tasks import demo as task

    minutes = _LANGUAGE_MINUTES if minutes is None else minutes
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


def demo_transduce(
    run: Annotated[
        Path | None,
        typer.Option(help="Run folder; the pairs lie beside it. [default: runs/demo-transduce, ...]"),
    ] = None,
    minutes: Annotated[float, typer.Option(help="Time to train, in minutes.", min=0.01)] = 3.0,
) -> None:
    """Train on dates written in hundreds of languages, evaluate, read some: "3 mai 2021" is 2021-05-03.

    The dates are written by Babel, from the locale data of the Unicode consortium.
    """
    from throughtime.tasks import demo_transduce as task
    from throughtime.tasks.demo import free_folder

    folder = run or free_folder(Path("runs"), "demo-transduce")
    note(f"Training a GRU with attention on dates of many languages for {minutes:g} minutes ...")
    found = task.demo(folder, minutes, tell=note)
    write(_dates(found))
    write(
        f"\nAll of it is in {folder}; the pairs are in {task.pairs_folder(folder)}. Go on with:\n"
        f'  echo "Dienstag, 4. Mai 2021" | throughtime predict {folder} --n-best 3\n'
        f'  throughtime inspect attention {folder} --input "4. Mai 2021"\n'
        "  throughtime train transduce --data PAIRS.tsv --run runs/mine\n"
    )


def _dates(found: Demonstration) -> str:
    """How good the answers are, and some of them."""
    lines = ["", "The day is right in every digit, of texts not trained on:"]
    for question in [*found.questions, found.new_patterns._replace(name="of these, patterns that no language has")]:
        name = _QUESTIONS.get(question.name, question.name)
        known = f"{question.months_seen:.0%} of their months' names were trained on"
        lines.append(f"  {question.exact:6.1%}  of {question.asked:,}: {name} ({known})")
    lines.append(f"What does not tell its day, as 02/03/2019, was left out: {found.ambiguous:.1%} of what was kept.")
    for name, title in _QUESTIONS.items():
        lines += ["", f"Some {title}:", *(_line(one) for one in found.examples if one.question == name)]
    return "\n".join(lines) + "\n"


def _line(one: Example) -> str:
    told = "" if one.right else f"  (wrong: {one.target})"
    return f"  {one.use.locale:<12} {one.answered.source}  ->  {one.answered.answers[0].text}{told}"
