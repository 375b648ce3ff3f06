"""The exception tree.

Every error a user can meet carries one line: who, expected, got, remedy. The command line prints that line and
leaves with `exit_code`; a program catches the branch it can handle.

    ThroughtimeError
    ├── UsageError            exit code 2: what was asked for cannot be done as asked
    │   ├── ConfigError       a configuration's keys or values
    │   ├── DataError         files, columns, encodings, texts that are too short
    │   ├── ShapeError        tensors (also a ValueError, as torch's users expect)
    │   ├── EngineError       an engine that cannot run what was asked of it by name
    │   ├── PromptError       a prompt that the model cannot read
    │   └── RunFolderError    a run folder that is missing, taken, foreign or newer
    └── FailureError          exit code 1: it was asked for rightly, and failed on the way
        ├── CheckpointError   a checkpoint that is damaged
        ├── DivergedError     a loss that is no longer finite
        ├── StorageError      the disk: full, read-only, gone
        └── Interrupted       stopped by the user or the system; the work so far is saved
"""

from __future__ import annotations


class ThroughtimeError(Exception):
    """Root of the tree. `exit_code` is what the command line returns."""

    exit_code: int = 1


class UsageError(ThroughtimeError):
    """What was asked for cannot be done as asked."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration's keys or values; all faults in one message."""


class DataError(UsageError):
    """Files, columns, encodings, or texts that are too short."""


class ShapeError(UsageError, ValueError):
    """A tensor whose shape, type or device does not fit."""


class EngineError(UsageError):
    """An engine asked for by name that cannot run the layer."""


class PromptError(UsageError):
    """A prompt that the model cannot read."""


class RunFolderError(UsageError):
    """A run folder that is missing, taken, of another task, or of a newer version."""


class FailureError(ThroughtimeError):
    """It was asked for rightly, and failed on the way."""

    exit_code = 1


class CheckpointError(FailureError):
    """A checkpoint that is truncated or altered."""


class DivergedError(FailureError):
    """A loss or a gradient that is no longer finite."""


class StorageError(FailureError):
    """The disk is full, read-only or gone."""


class Interrupted(FailureError):
    """Stopped by the user or the system; the work so far is saved."""
