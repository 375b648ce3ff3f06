"""Ctrl-C and SIGTERM as a request that the loop meets between two steps."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NOTICE = b"\nstopping after this step; Ctrl-C again leaves at once, without saving\n"


class StopSignals:
    """While entered, the first SIGINT or SIGTERM sets `received`, and says so on stderr.

    A second Ctrl-C raises KeyboardInterrupt at once where `insistent` is true; under torchrun it is false, as
    torchrun passes on a Ctrl-C that the terminal has sent to every process already. Outside the main thread Python
    lets nobody handle signals: nothing is changed there.
    """

    def __init__(self, *, insistent: bool) -> None:
        self.received: int | None = None
        self._insistent = insistent
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and self._insistent and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None and self._insistent:
            # Not print: the signal may have come in the midst of another print to the same buffer.
            os.write(2, _NOTICE)
        self.received = number
