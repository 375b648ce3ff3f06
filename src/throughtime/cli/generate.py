"""`throughtime generate`."""

from __future__ import annotations

import sys
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from throughtime.cli.output import note, raise_if_interrupted, write, write_json
from throughtime.cli.right_command import expect_task
from throughtime.errors import PromptError

if TYPE_CHECKING:
    from throughtime.decoding.text import Piece


def generate(
    run: Annotated[Path, typer.Argument(help="Run folder of a trained language model.", metavar="RUN")],
    prompt: Annotated[str, typer.Option(help="Text to go on from; - reads it from standard input.")] = "",
    length: Annotated[int | None, typer.Option(help="Tokens to write, at most. [default: 500]", min=0)] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Below 1 safer, above 1 bolder, 0 always the likeliest. [default: 1]")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Choose among the K likeliest tokens; 0: all.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Choose among the likeliest tokens that sum to this probability; 1: all.")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Choose among tokens this fraction as likely as the likeliest; 0: all.")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1: tokens that are there already become less likely; 1: off.")
    ] = None,
    beam: Annotated[
        int | None,
        typer.Option(help="Search the likeliest text with so many beginnings, in place of drawing one.", min=1),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed; the same one gives the same text.", min=0)] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="End the text before this string; may be given several times.", metavar="TEXT"),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Texts to write.", min=1)] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, or weights stored as bf16 or int8: faster, less exact. [default: fp32]")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line for each text.")] = False,
) -> None:
    """Write text with a trained language model, after a prompt.

    The text appears as it is made, the prompt before it; it ends after --length tokens, where the model ends it, or at
    a --stop string. Options that are not given are those of [generation] in the run's config.toml.
    """
    expect_task(run, "lm", "generate")
    text = _standard_input() if prompt == "-" else prompt
    from throughtime.configuration import validate
    from throughtime.decoding.config import DRAWING, GenerationConfig
    from throughtime.decoding.randomness import new_seed
    from throughtime.decoding.text import prompt_text, stream_text
    from throughtime.tasks import language

    model, tokenizer, configuration = language.load(run)
    given = {
        "length": length, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
        "repetition_penalty": repetition_penalty, "beam": beam, "seed": seed, "stop": stop, "samples": samples,
        "precision": precision,
    }  # fmt: skip
    changes = {name: value for name, value in given.items() if value is not None}
    values = {**configuration.generation.model_dump(), **changes}
    if beam:
        # How the run's configuration draws has no part in a search; what the command line says of it has, and fails.
        values = {name: value for name, value in values.items() if name in changes or name not in DRAWING}
    is_new = values["seed"] is None and not values["beam"]
    if is_new:
        values["seed"] = new_seed()
    config = validate(GenerationConfig, values, where="generate")
    read = tokenizer.check_prompt(text)
    if is_new:
        note(f"seed {config.seed}")
    if read.unknown:
        note(f"throughtime: note: not in the vocabulary, read as unknown: {', '.join(map(repr, read.unknown))}")
    pieces = stream_text(model, tokenizer, read, config)
    if json:
        _write_objects(pieces, {"prompt": text, "seed": config.seed})
    else:
        _write_texts(pieces, prompt_text(tokenizer, read), config.samples)


def _standard_input() -> str:
    """The prompt as it stands there, line ends and all.

    Raises:
        PromptError: it is not UTF-8.
    """
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"prompt: standard input is not UTF-8 at byte {error.start + 1}; convert it, for example with iconv"
        ) from None


def _write_texts(pieces: Iterator[Piece], prompt: str, samples: int) -> None:
    """Each text behind its prompt, the first one as it is made, the others behind it."""
    current, last = -1, ""
    try:
        for piece in _in_order(pieces):
            if piece.sample != current:
                current, last = piece.sample, prompt
                if samples > 1:
                    note(f"--- sample {current + 1} of {samples}")
                write(prompt)
            if piece.text:
                write(piece.text)
                last = piece.text
            if piece.ended and not last.endswith("\n"):
                write("\n")
    except KeyboardInterrupt:
        write("\n")
        raise


def _write_objects(pieces: Iterator[Piece], about: Mapping[str, Any]) -> None:
    """One object for each text, in order, as soon as it is whole."""
    text = ""
    for piece in _in_order(pieces):
        text += piece.text
        if piece.ended:
            write_json({"sample": piece.sample, **about, "text": text, "tokens": piece.tokens, "ended": piece.ended})
            text = ""


def _in_order(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The pieces of one text after those of another; those of the first unfinished one at once."""
    waiting: defaultdict[int, deque[Piece]] = defaultdict(deque)
    current = 0
    for piece in pieces:
        raise_if_interrupted()
        waiting[piece.sample].append(piece)
        while waiting[current]:
            ready = waiting[current].popleft()
            yield ready
            current += ready.ended is not None
