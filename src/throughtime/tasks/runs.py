"""What the tasks of the command line share: the configuration of a run, and its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from throughtime.configuration import apply_overrides, read_toml, validate
from throughtime.errors import RunFolderError
from throughtime.training.run_folder import RunFolder

Configuration = TypeVar("Configuration", bound=BaseModel)


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
