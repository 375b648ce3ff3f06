"""Results on standard output, notes on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from throughtime.errors import StorageError


def write(text: str) -> None:
    """Write text to standard output, at once.

    Raises:
        StorageError: what stands behind it is full or gone.
        BrokenPipeError: nobody reads it any more.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StorageError(f"standard output: cannot be written: {error.strerror}; free some space and go on") from None


def write_json(values: Mapping[str, Any]) -> None:
    """One object on one line."""
    write(json.dumps(values, ensure_ascii=False) + "\n")


def note(text: str) -> None:
    """One line beside the results."""
    print(text, file=sys.stderr, flush=True)


def is_main_process() -> bool:
    """Whether this is the process that talks, of those that torchrun started."""
    import os

    return os.environ.get("RANK", "0") == "0"
