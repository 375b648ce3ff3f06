"""What a command prints, and how it hears of Ctrl-C."""

from __future__ import annotations

import signal
import sys

import pytest

from throughtime.cli.output import heeding_interrupts, raise_if_interrupted


class Finalised:
    """Python swallows what is raised here."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_that_python_swallows_is_raised_again(capsys: pytest.CaptureFixture[str]) -> None:
    hook = sys.unraisablehook
    with heeding_interrupts():
        raise_if_interrupted()
        Finalised()
        with pytest.raises(KeyboardInterrupt):
            raise_if_interrupted()
    assert capsys.readouterr().err == ""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert sys.unraisablehook is hook
    raise_if_interrupted()


def test_an_interrupt_ends_a_block_at_once() -> None:
    with heeding_interrupts(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_signal_that_somebody_else_handles_is_left_alone() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with heeding_interrupts():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            signal.raise_signal(signal.SIGINT)
            raise_if_interrupted()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
