"""What the user sees while a model trains: one live line on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Protocol

_PLAIN_SECONDS = 10.0


class Progress(Protocol):
    """Shows how far a training is."""

    def update(self, done: float, step: int, values: Mapping[str, float]) -> None:
        """`done` in [0, 1] of the training, at `step`, with the numbers to show."""
        ...

    def note(self, message: str) -> None:
        """A line that stays: an evaluation, a notice."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was."""
        ...


class PlainProgress:
    """Lines on stderr, one every ten seconds at most."""

    def __init__(self, done: float = 0.0) -> None:
        self._clock = _Clock(done)
        self._last = -_PLAIN_SECONDS

    def update(self, done: float, step: int, values: Mapping[str, float]) -> None:
        """One line, unless the last one is younger than ten seconds."""
        now = time.monotonic()
        if now - self._last >= _PLAIN_SECONDS:
            self._last = now
            left = duration(self._clock.left(done))
            self.note(f"step {step:>6}  {done:4.0%}  {describe(values)}  left {left}")

    def note(self, message: str) -> None:
        """One line, now."""
        print(message, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing to undo."""


class LiveProgress:
    """A bar and the newest numbers, redrawn in place on the terminal."""

    def __init__(self, done: float = 0.0) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        self._clock = _Clock(done)
        self._bar = Bar(
            TextColumn("{task.percentage:>3.0f}%"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[line]}"),
            console=Console(stderr=True),
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("training", total=1.0, line="")
        self._bar.update(self._task, completed=done)
        self._bar.start()

    def update(self, done: float, step: int, values: Mapping[str, float]) -> None:
        """Show the newest numbers at the next redrawing."""
        left = duration(self._clock.left(done))
        self._bar.update(self._task, completed=done, line=f"step {step}  {describe(values)}  left {left}")

    def note(self, message: str) -> None:
        """A line above the bar."""
        self._bar.console.print(message, highlight=False, markup=False)

    def close(self) -> None:
        """Leave the last line as it is and give the terminal back."""
        self._bar.stop()


class SilentProgress:
    """Shows nothing: for every process but the main one."""

    def update(self, done: float, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def note(self, message: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def make_progress(*, is_main: bool, done: float) -> Progress:
    """Live on a terminal, plain elsewhere, silent at all processes but the main one; `done` in [0, 1] is past."""
    if not is_main:
        return SilentProgress()
    return LiveProgress(done) if sys.stderr.isatty() else PlainProgress(done)


_SHORT = {
    "loss": ("loss", "{:.4f}"),
    "bits_per_character": ("bits/char", "{:.3f}"),
    "bits_per_byte": ("bits/byte", "{:.3f}"),
    "perplexity": ("ppl", "{:.1f}"),
    "tokens_per_second": ("tokens/s", "{:,.0f}"),
    "learning_rate": ("lr", "{:.2e}"),
    "gradient_norm": ("|g|", "{:.2f}"),
}


def describe(values: Mapping[str, float]) -> str:
    """The numbers that have a short name, in a fixed order, as one line."""
    return "  ".join(
        f"{name} {form.format(values[key])}" for key, (name, form) in _SHORT.items() if values.get(key) is not None
    )


def duration(seconds: float | None) -> str:
    """Seconds as h:mm:ss, or a dash when they are not known yet."""
    if seconds is None:
        return "-"
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds_left:02d}"


class _Clock:
    """Time left, from the pace since this process began."""

    def __init__(self, done: float) -> None:
        self._start = time.monotonic()
        self._done = done

    def left(self, done: float) -> float | None:
        covered = done - self._done
        return None if covered <= 0 else (time.monotonic() - self._start) * (1 - done) / covered
