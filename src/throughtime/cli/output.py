"""Results on standard output, notes on standard error."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from throughtime.errors import StorageError

if TYPE_CHECKING:
    from throughtime.training.loop import Outcome


class _Interrupts:
    """Whether Ctrl-C has been pressed while a command was at work."""

    received = False


@contextmanager
def heeding_interrupts() -> Iterator[None]:
    """A block in which Ctrl-C raises KeyboardInterrupt, and is remembered for `raise_if_interrupted`.

    Python swallows an exception that a signal raises while an object is being finalised, a generator for example; a
    command that then wrote on and on would have to be killed.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        _Interrupts.received = True
        raise KeyboardInterrupt

    def unraisable(about: Any) -> None:
        # It is raised again: nobody needs to hear of the first time.
        if about.exc_type is not KeyboardInterrupt:
            hook(about)

    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # somebody else's signal; the background of a shell ignores it, for example
        return
    hook = sys.unraisablehook
    _Interrupts.received = False
    sys.unraisablehook = unraisable
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = hook
        _Interrupts.received = False


def raise_if_interrupted() -> None:
    """For loops that write on and on.

    Raises:
        KeyboardInterrupt: one was swallowed; see `heeding_interrupts`.
    """
    if _Interrupts.received:
        raise KeyboardInterrupt


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


def write_outcome(run: Path, outcome: Outcome) -> None:
    """How a training ended, told by the process that talks."""
    if is_main_process():
        best = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in outcome.best.items())
        write(
            f"{run}: {outcome.steps:,} steps ({outcome.stopped_because}); best at step {outcome.best_step:,}: {best}\n"
        )
