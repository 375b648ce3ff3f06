"""What the tasks of the command line share: the configuration of a run, and its folder."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from throughtime.configuration import apply_overrides, read_toml, validate
from throughtime.errors import ConfigError, DataError, RunFolderError
from throughtime.training.run_folder import RunFolder

Configuration = TypeVar("Configuration", bound=BaseModel)

STANDARD_INPUT = "-"

# Keys of [model] that play a part in training alone, or say who computes: a run may go on with others.
_MAY_CHANGE = frozenset({
    "dropout", "variational_dropout", "embedding_dropout", "recurrent_dropout", "weight_dropout", "coverage_loss",
    "engine",
})  # fmt: skip


def configured(
    kind: type[Configuration],
    run: Path,
    task: str,
    *,
    config_file: Path | None,
    overrides: Sequence[str],
    given: Mapping[str, Mapping[str, Any]],
    resume: bool,
) -> Configuration:
    """The configuration of a training: of the run when resuming, of a file, of overrides, then what was `given`.

    Raises:
        ConfigError: unknown keys or values out of range, all at once.
        RunFolderError: resumed where there is no run of this task, or one without a configuration, and no data given.
    """
    sources = [config_file] if config_file is not None else []
    if resume:
        sources = [*saved_configuration(run, task), *sources]
    values: dict[str, Any] = {}
    for source in sources:
        values = merged(values, read_toml(source))
    where = " with ".join([*(str(source) for source in sources), *(["--set"] if overrides else [])]) or "configuration"
    values = merged(apply_overrides(values, overrides), given)
    if resume and not sources and not values.get("data"):
        raise RunFolderError(
            f"run folder {run}: it was stopped before its configuration was written; give the first command again, "
            "with its --data and --resume"
        )
    return validate(kind, values, where=where)


def saved_configuration(run: Path, task: str) -> list[Path]:
    """The config.toml of a run to go on with; none where it was killed before that was written."""
    folder = RunFolder.open(run, task)
    return [folder.config] if folder.config.exists() or begun(folder) else []


def begun(folder: RunFolder) -> bool:
    """Whether a training may have begun: data.json is the last file to be written before."""
    return (folder.path / "data.json").exists() or folder.checkpoints.exists()


def check_kept(run: Path, task: str, *, model: BaseModel, data: BaseModel, vocabulary: Sequence[str]) -> None:
    """A run that has begun keeps its [model], but for dropout and engine, and its `vocabulary`, keys of [data].

    To be called before anything is written, so that a refused command leaves a run as it was.

    Raises:
        ConfigError: resumed with others, each with what it was and what it was to be.
        RunFolderError: there is no run of this task.
    """
    folder = RunFolder.open(run, task)
    if not begun(folder):
        return
    before = read_toml(folder.config)
    of_model = [key for key in type(model).model_fields if key not in _MAY_CHANGE]
    for name, section, keys in (("data", data, vocabulary), ("model", model, of_model)):
        saved, now = before.get(name, {}), section.model_dump(mode="json")
        # A key that the file lacks is newer than the run, which has its default.
        defaults = {key: type(section).model_fields[key].get_default(call_default_factory=True) for key in keys}
        was = {key: saved.get(key, defaults[key]) for key in keys}
        if changed := [f"{name}.{key}: the run in {run} has {was[key]!r}, got {now[key]!r}" for key in keys
                       if was[key] != now[key]]:  # fmt: skip
            kept = "model" if name == "model" else "vocabulary"
            raise ConfigError(f"{'; '.join(changed)}; a run keeps its {kept}: train into another --run")


@contextmanager
def reading(names: Collection[str | None], *, again: bool, processes: int) -> Iterator[None]:
    """A block in which the data of a run are read, those of standard input ("-") among the `names` or not.

    again: the run has begun before, and what came through standard input then must come through it once more.

    Raises:
        DataError: several processes are to read standard input, or nothing comes from it again.
    """
    if STANDARD_INPUT not in names:
        yield
        return
    if processes > 1:
        raise DataError("data: standard input can be read by one process only; give several processes a file")
    remedy = "the data of this run came from standard input: pipe the same into it once more"
    if again and sys.stdin.isatty():
        raise DataError(f"data: expected a pipe, got a terminal; {remedy}")
    try:
        yield
    except DataError as error:
        if again and str(error).startswith("standard input: the file is empty"):
            raise DataError(f"standard input: it is empty; {remedy}") from None
        raise


def trained(run: Path, task: str) -> RunFolder:
    """The folder of a run that has a model.

    Raises:
        RunFolderError: no run folder, one of another task or of a newer version, or one without a model yet.
    """
    folder = RunFolder.open(run, task)
    if not folder.model.exists():
        raise RunFolderError(
            f"run folder {run}: expected a trained model, got none yet: the first evaluation writes it "
            "(training.evaluate_every); let it train on, with --resume where it has stopped"
        )
    return folder


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `changes` laid over it, section by section."""
    result = dict(base)
    for name, section in changes.items():
        before = result.get(name, {})
        if isinstance(before, Mapping) and isinstance(section, Mapping):
            result[name] = {**before, **section}
        elif isinstance(before, Mapping):
            # What is no section stays visible: validation tells of it together with all other faults.
            result[name] = section
    return result
