"""`throughtime`: the commands, their arguments, and what a user sees when one goes wrong."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from throughtime.cli.arguments import spread
from throughtime.cli.bench import recurrence
from throughtime.cli.demo import demo, demo_transduce
from throughtime.cli.evaluate import evaluate
from throughtime.cli.generate import generate
from throughtime.cli.help import example
from throughtime.cli.inspect import unfold
from throughtime.cli.inspect_attention import inspect_attention
from throughtime.cli.inspect_flow import inspect_flow
from throughtime.cli.output import heeding_interrupts
from throughtime.cli.predict import predict
from throughtime.cli.train import language_model
from throughtime.cli.train_transduce import transduce
from throughtime.errors import ThroughtimeError

# 128 + the number of the signal, as a shell reports a program that SIGINT or SIGPIPE has ended.
INTERRUPTED = 130
PIPE_CLOSED = 141

app = typer.Typer(name="throughtime", add_completion=False, rich_markup_mode=None)
train = typer.Typer(rich_markup_mode=None)
bench = typer.Typer(rich_markup_mode=None)
inspect = typer.Typer(rich_markup_mode=None)


def _version(wanted: bool) -> None:
    if wanted:
        from throughtime import __version__

        typer.echo(f"throughtime {__version__}")
        raise typer.Exit


def _help_unless_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.callback(invoke_without_command=True, epilog=example("throughtime demo"))
def throughtime(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Recurrent sequence modelling: train RNNs, LSTMs and GRUs through time, and generate from them."""
    _help_unless_command(context)


@train.callback(invoke_without_command=True, epilog=example("throughtime train lm --data book.txt --run runs/book"))
def _train(context: typer.Context) -> None:
    """Train a model into a run folder."""
    _help_unless_command(context)


@inspect.callback(
    invoke_without_command=True, epilog=example("throughtime inspect unfold --design hidden-recurrent --out graph.svg")
)
def _inspect(context: typer.Context) -> None:
    """Look into a network: its graph through time, the gradient on its way back, its attention."""
    _help_unless_command(context)


@bench.callback(invoke_without_command=True, epilog=example("throughtime bench recurrence --cells lstm"))
def _bench(context: typer.Context) -> None:
    """Measure speed and memory against PyTorch, both sides in one run."""
    _help_unless_command(context)


demos = typer.Typer(rich_markup_mode=None)
demos.callback(invoke_without_command=True, epilog=example("throughtime demo --minutes 1"))(demo)
demos.command("transduce", epilog=example("throughtime demo transduce --minutes 1"))(demo_transduce)
app.add_typer(demos, name="demo")
app.add_typer(train, name="train")
train.command(
    "lm",
    epilog=example(
        "throughtime train lm --data book.txt --run runs/book --set model.hidden_size=256",
        "throughtime train lm --run runs/book --resume",
    ),
)(language_model)
train.command(
    "transduce",
    epilog=example(
        "throughtime train transduce --data train.tsv --valid dev.tsv --run runs/say",
        "throughtime train transduce --source en.txt --target de.txt --run runs/en-de",
        "throughtime train transduce --run runs/say --resume",
    ),
)(transduce)
app.command(epilog=example('throughtime generate runs/book --prompt "Once upon" --length 300 --temperature 0.8'))(
    generate
)
app.command(
    epilog=example(
        "throughtime predict runs/say --input words.txt --output answers.txt",
        "throughtime predict runs/say --n-best 3 < words.txt",
    )
)(predict)
app.command(
    epilog=example(
        "throughtime evaluate runs/book --data other.txt --json",
        "throughtime evaluate runs/say --data test.tsv --metrics exact_match token_error_rate",
    )
)(evaluate)
app.add_typer(inspect, name="inspect")
inspect.command(
    epilog=example(
        "throughtime inspect unfold --design conditional-recurrent --steps 4 --out graph.svg",
        "throughtime inspect unfold runs/book --out graph.png",
    )
)(unfold)
inspect.command(
    "flow",
    epilog=example(
        "throughtime inspect flow runs/rnn runs/lstm --out flow.png",
        "throughtime inspect flow runs/book --data other.txt --json",
    ),
)(inspect_flow)
inspect.command(
    "attention",
    epilog=example('throughtime inspect attention runs/say --input "through" --out attention.png'),
)(inspect_attention)
app.add_typer(bench, name="bench")
bench.command(
    "recurrence",
    epilog=example(
        "throughtime bench recurrence --json recurrence.json",
        "throughtime bench recurrence --cells lstm gru --hidden 512 --batch 64 --precision fp32",
        "throughtime bench recurrence --ragged",
    ),
)(recurrence)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (by default this process's own) and give its exit code.

    0: fine; 1: failed; 2: misused; 130: interrupted; 141: whoever read the output has gone. What a user can mend is
    told in one line on stderr; any other exception is a bug and keeps its traceback.
    """
    _print_what_the_terminal_can()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        command = typer.main.get_command(app)
        # Not command.main(): that prints an error over several lines, and ends a closed pipe as a failure.
        with heeding_interrupts(), command.make_context("throughtime", spread(given)) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as done:
        return done.exit_code
    except ThroughtimeError as error:
        return _complain(str(error), error.exit_code)
    except typer.TyperException as error:
        return _complain(_misuse(error), error.exit_code)
    except BrokenPipeError:
        # Python flushes stdout once more when it ends; there is nobody left to tell about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    return 0


def _print_what_the_terminal_can() -> None:
    """Characters that the terminal's encoding lacks are replaced, instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _complain(message: str, exit_code: int) -> int:
    line = " ".join(message.split())
    print(f"throughtime: error: {line}", file=sys.stderr, flush=True)
    return exit_code


def _misuse(error: Any) -> str:
    """A wrong command line in one line: what is wrong, the nearest right name, and where to read more."""
    context = getattr(error, "ctx", None)
    option = getattr(error, "option_name", None)
    message = (error.message if option else error.format_message()).rstrip(".").replace(": Value error, ", ": ")
    where = f"see {context.command_path if context else 'throughtime'} --help"
    if option and context is not None:
        names = [name for parameter in context.command.get_params(context) for name in parameter.opts]
        nearest = difflib.get_close_matches(option, names, n=1, cutoff=0.5)
        where = f"did you mean {nearest[0]}? {where}" if nearest else where
    separator = " " if message.endswith("?") else "; "
    return f"{message[:1].lower()}{message[1:]}{separator}{where}"
