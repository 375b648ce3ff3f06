"""Which command a run is for."""

from __future__ import annotations

from pathlib import Path

from throughtime.errors import UsageError

_COMMANDS = {
    "lm": ("a language model", "throughtime generate {run} --prompt TEXT"),
    "transduce": ("a model of pairs", "throughtime predict {run} --input FILE"),
}


def refuse_pairs(run: Path, command: str) -> None:
    """Nothing, where `run` is no model of pairs, for which the command is not.

    Raises:
        UsageError: it is one.
        RunFolderError: there is none, it is no run folder, or of a newer version.
    """
    from throughtime.training.run_folder import RunFolder

    if RunFolder.task_of(run) == "transduce":
        raise UsageError(
            f"{command}: expected a run of a language model or a design, got {run}, a model of pairs; "
            f"use throughtime inspect attention {run} --input TEXT"
        )


def expect_task(run: Path, task: str, command: str) -> None:
    """Nothing, where `run` is one of `task`; of another task that has a command of its own, that is named.

    Raises:
        UsageError: the run is for another command.
        RunFolderError: there is none, it is no run folder, or of a newer version.
    """
    from throughtime.training.run_folder import RunFolder

    found = RunFolder.task_of(run)
    if found != task and found in _COMMANDS:
        kind, line = _COMMANDS[found]
        raise UsageError(
            f"{command}: expected a run of {_COMMANDS[task][0]}, got {run}, {kind}; use {line.format(run=run)}"
        )
