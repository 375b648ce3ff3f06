"""How much memory a training step takes beyond what was there before it, ours against `torch.nn`'s.

Each side runs in a fresh process (`python -m throughtime.tasks.benchmarks.memory`), so that neither finds memory that
the other has left.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from throughtime.errors import FailureError, UsageError
from throughtime.tasks.benchmarks.recurrence import Case, engine, sides

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # see proc_pid_clear_refs(5)


@dataclass(frozen=True)
class MemoryRow:
    """Bytes that a step of each side takes at its peak."""

    case: Case
    engine: str
    ours: int
    theirs: int

    @property
    def ratio(self) -> float:
        """How many times as much torch.nn takes."""
        return self.theirs / self.ours

    def as_dict(self) -> dict[str, Any]:
        """Flat, for JSON."""
        return {
            **asdict(self.case),
            "engine": self.engine,
            "ours_bytes": self.ours,
            "torch_bytes": self.theirs,
            "ratio": self.ratio,
        }


def measure_memory(case: Case, *, threads: int) -> MemoryRow:
    """Run a step of each side in a process of its own.

    Raises:
        UsageError: this system does not tell a process's peak.
        FailureError: a process failed.
    """
    if not _CLEAR.exists():
        raise UsageError("bench recurrence: --memory reads Linux's /proc/self/clear_refs; run it on Linux")
    ours, theirs = (_in_a_process(case, side, threads) for side in (0, 1))
    # The least that there is to count, so that a step too small to be seen has a ratio.
    return MemoryRow(case, ours["engine"], max(1, ours["bytes"]), max(1, theirs["bytes"]))


def _in_a_process(case: Case, side: int, threads: int) -> dict[str, Any]:
    order = json.dumps({"case": asdict(case), "side": side, "threads": threads})
    done = subprocess.run([sys.executable, "-m", __name__, order], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise FailureError(f"bench recurrence: {case}: the process that measures memory failed: {last}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _measure_here(case: Case, side: int) -> dict[str, Any]:
    """The peak of one step in this process, above what there was just before."""
    # What a first call loads and keeps, whatever the sizes, is not the step's.
    small = replace(case, hidden=8, batch=2, steps=2)
    sides(small)[side].step()
    used, chosen = engine(sides(case)[0]), sides(case)[side]
    _release()
    _CLEAR.write_text(_RESET_PEAK)
    before = _status("VmRSS")
    results = chosen.step()
    peak = _status("VmHWM")
    del results
    return {"bytes": peak - before, "engine": used}


def _release() -> None:
    """Give back to the system what Python and the C library keep of freed memory, where they can be told to."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status(name: str) -> int:
    """A field of this process's status, in bytes."""
    line = next(line for line in _STATUS.read_text("ascii").splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    """What the process does: the case is its argument, a line of JSON its output."""
    order = json.loads(sys.argv[1])
    torch.set_num_threads(order["threads"])
    print(json.dumps(_measure_here(Case(**order["case"]), order["side"])))


if __name__ == "__main__":
    main()
