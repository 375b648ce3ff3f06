"""`throughtime train transduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from throughtime.cli.output import note, write_outcome
from throughtime.errors import ConfigError, UsageError


def transduce(
    run: Annotated[Path, typer.Option(help="Run folder to write: configuration, model, checkpoints, metrics, curve.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Pairs to train on: files or globs; several may follow one --data. Lines SOURCE<TAB>TARGET, or .csv, "
            ".jsonl, .parquet with columns; also .gz. 5 % of the sources are held out unless --valid.",
            metavar="PATH...",
        ),
    ] = None,
    valid: Annotated[list[str] | None, typer.Option(help="Held-out pairs.", metavar="PATH...")] = None,
    source: Annotated[
        str | None, typer.Option(help="In place of --data: the sources, one a line ...", metavar="FILE")
    ] = None,
    target: Annotated[str | None, typer.Option(help="... and their targets, line by line.", metavar="FILE")] = None,
    valid_source: Annotated[
        str | None, typer.Option(help="In place of --valid: the held-out sources ...", metavar="FILE")
    ] = None,
    valid_target: Annotated[str | None, typer.Option(help="... and their targets.", metavar="FILE")] = None,
    source_column: Annotated[
        str | None,
        typer.Option(help="Column of the sources. [default: source; of tab-separated lines the first field]"),
    ] = None,
    target_column: Annotated[
        str | None,
        typer.Option(help="Column of the targets. [default: target; of tab-separated lines the second field]"),
    ] = None,
    errors: Annotated[
        Literal["strict", "replace"] | None,
        typer.Option(help="Bytes that are not UTF-8: stop, or read U+FFFD. [default: strict]"),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(help="Tokens of a source or target; longer pairs are left out, counted, listed. [default: 200]"),
    ] = None,
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
    seed: Annotated[int | None, typer.Option(help="Seed; the same as --set training.seed=N.", min=0)] = None,
) -> None:
    """Train an encoder-decoder with attention on pairs: any sequence into another.

    The configuration is that of --config, then --set, then the other options. Ctrl-C saves and stops; --resume goes on.
    Levels: --set data.source_tokenizer=words data.target_tokenizer=bpe; chars where nothing is said; also bytes.
    """
    overrides = list(set_ or [])
    read = {"source_column": source_column, "target_column": target_column, "errors": errors, "max_length": max_length}
    section = {
        **_pairs("", data, source, target),
        **_pairs("valid", valid, valid_source, valid_target),
        **{key: value for key, value in read.items() if value is not None},
    }
    named = {"paths", "source"} & section.keys() or {"data.paths", "data.source"} & {
        key.partition("=")[0].strip() for key in overrides
    }
    if not (named or config or resume):
        raise ConfigError(
            "train transduce: no pairs given; name some with --data PATH..., two parallel files with --source FILE "
            "--target FILE, or a configuration with --config FILE.toml"
        )
    if seed is not None:
        overrides.append(f"training.seed={seed}")
    from throughtime.tasks import transduce as task

    outcome = task.train(
        run,
        data=section,
        config_file=config,
        overrides=overrides,
        resume=resume,
        tensorboard=tensorboard,
        tell=note,
    )
    write_outcome(run, outcome)


def _pairs(prefix: str, paths: list[str] | None, source: str | None, target: str | None) -> dict[str, Any]:
    """The keys of [data] for pairs given in one of the two ways; they replace what a configuration names in the other.

    Raises:
        UsageError: given in both, or one file of two.
    """
    stem = f"{prefix}-" if prefix else ""
    if paths and (source or target):
        raise UsageError(
            f"train transduce: expected --{prefix or 'data'} PATH... or two parallel files, got both; leave one out"
        )
    if (source is None) != (target is None):
        given, missing = (f"--{stem}source", f"--{stem}target")[:: 1 if target is None else -1]
        raise UsageError(f"train transduce: {given} needs {missing}, the other of two parallel files; give both")
    key = f"{prefix}_" if prefix else ""
    if paths:
        return {prefix or "paths": paths, f"{key}source": None, f"{key}target": None}
    if source:
        return {prefix or "paths": [], f"{key}source": source, f"{key}target": target}
    return {}
