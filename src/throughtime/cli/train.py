"""`throughtime train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from throughtime.cli.output import write_outcome
from throughtime.errors import ConfigError


def language_model(
    run: Annotated[Path, typer.Option(help="Run folder to write: configuration, model, checkpoints, metrics, curve.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Text to train on: files, folders, globs, - (standard input) or stdlib: (Python's own library); "
            "several may follow one --data. .txt, .jsonl, .csv, .parquet, also .gz. 5 % is held out unless --valid.",
            metavar="PATH...",
        ),
    ] = None,
    valid: Annotated[list[str] | None, typer.Option(help="Held-out text.", metavar="PATH...")] = None,
    config: Annotated[
        Path | None, typer.Option(help="Configuration, such as the config.toml of another run.", metavar="FILE.toml")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Set one key of the configuration; several may follow.", metavar="SECTION.KEY=VALUE..."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run from its last checkpoint.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard events as well.")] = False,
    column: Annotated[
        str | None, typer.Option(help="Column with the text in .jsonl, .csv and .parquet. [default: text]")
    ] = None,
    errors: Annotated[
        Literal["strict", "replace"] | None,
        typer.Option(help="Bytes that are not UTF-8: stop, or read U+FFFD. [default: strict]"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed; the same as --set training.seed=N.", min=0)] = None,
) -> None:
    """Train a recurrent language model on text.

    The configuration is that of --config, then --set, then the other options. Ctrl-C saves and stops; --resume goes on.
    """
    overrides = list(set_ or [])
    if not (data or config or resume or any(key.startswith("data.paths") for key in overrides)):
        raise ConfigError(
            "train lm: no text given; name some with --data PATH..., or a configuration with --config FILE.toml"
        )
    if seed is not None:
        overrides.append(f"training.seed={seed}")
    from throughtime.tasks import language

    outcome = language.train(
        data or [],
        run,
        valid=valid or [],
        column=column,
        errors=errors,
        config_file=config,
        overrides=overrides,
        resume=resume,
        tensorboard=tensorboard,
    )
    write_outcome(run, outcome)
