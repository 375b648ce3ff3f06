"""Checkpointed against full backpropagation through time: time, memory, and how far their gradients are apart.

    python benchmarks/checkpointing.py [--rounds 5]     # LSTM, H 256, B 8, 20,000 steps
    python benchmarks/checkpointing.py --million        # B 1, I 8, loss on the final state of 1,000,000 steps
    python benchmarks/checkpointing.py --budgets        # what a MemoryBudget takes, by its size
    python benchmarks/checkpointing.py --plot docs/images/bptt-cost.png

Both sides alternate in one process, medians of their times. Memory is the peak of a fresh process for each side, above
what there was before the step (inputs, parameters, the gradient of the outputs), without the outputs and the gradient
of the inputs; Linux tells it.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import throughtime as tt

MIB = 2**20


@dataclass(frozen=True)
class Case:
    """An LSTM over so many steps; `checkpoint` is "full", "sqrt", or the bytes of a budget."""

    steps: int = 20_000
    batch: int = 8
    inputs: int = 256
    units: int = 256
    checkpoint: str | int = "full"
    threads: int = 2
    rounds: int = 1  # the time is that of the fastest, the memory that of the first
    final_only: bool = False  # the loss is on the final state alone, and inputs need no gradient

    @property
    def outside(self) -> int:
        """Bytes that a step makes and that count as outputs and as the gradient of the inputs."""
        return 4 * self.steps * self.batch * (self.units + (0 if self.final_only else self.inputs))


def prepared(case: Case) -> tuple[tt.Cell, Callable[[], torch.Tensor]]:
    """The cell, and one forward and backward pass, which gives the gradient of U."""
    torch.manual_seed(0)
    cell = tt.nn.LSTMCell(case.inputs, case.units)
    x = torch.randn(case.steps, case.batch, case.inputs).requires_grad_(not case.final_only)
    of_outputs = None if case.final_only else torch.randn(case.steps, case.batch, case.units)
    checkpoint: Any = {"full": None, "sqrt": "sqrt"}.get(str(case.checkpoint))
    if isinstance(case.checkpoint, int):
        checkpoint = tt.bptt.MemoryBudget(case.checkpoint)

    def step() -> torch.Tensor:
        cell.zero_grad()
        x.grad = None
        outputs, final = tt.unfold(cell, x, checkpoint=checkpoint)
        if of_outputs is None:
            final.h.square().sum().backward()
        else:
            outputs.backward(of_outputs)
        return cell.weight_ih.grad

    return cell, step


# -- memory, in processes of their own ---------------------------------------------------------------------------------


def in_a_process(case: Case) -> dict[str, Any]:
    order = json.dumps(asdict(case))
    done = subprocess.run([sys.executable, __file__, "--measure", order], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def measure_here(case: Case) -> dict[str, Any]:
    """Bytes at the peak of a step above those before it, and of the whole process; its seconds."""
    torch.set_num_threads(case.threads)
    prepared(replace(case, steps=20))[1]()  # what a first call loads and keeps is not the step's
    _, step = prepared(case)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    clock = time.process_time if case.threads == 1 else time.perf_counter
    before, peak, times = status("VmRSS"), 0, []
    for _ in range(case.rounds):
        began = clock()
        step()
        times.append(clock() - began)
        peak = peak or status("VmHWM")
    return {"beyond": peak - before - case.outside, "process": peak, "seconds": min(times)}


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024


# -- what is shown -----------------------------------------------------------------------------------------------------


def contest(rounds: int) -> None:
    """Full and checkpointed BPTT in turn."""
    sides = {kind: prepared(Case(checkpoint=kind))[1] for kind in ("full", "sqrt")}
    gradients = {kind: step().clone() for kind, step in sides.items()}
    times: dict[str, list[float]] = {kind: [] for kind in sides}
    for attempt in range(rounds):
        for kind in sides if attempt % 2 else reversed(sides):
            began = time.perf_counter()
            sides[kind]()
            times[kind].append(time.perf_counter() - began)
    memory = {kind: in_a_process(Case(checkpoint=kind))["beyond"] for kind in sides}
    print(f"LSTM, I = H = 256, B = 8, 20,000 steps, float32, {torch.get_num_threads()} threads, {rounds} rounds")
    for kind in sides:
        middle, spread = statistics.median(times[kind]), f"{min(times[kind]):.2f}-{max(times[kind]):.2f}"
        print(f"  {kind:5} {middle:6.2f} s ({spread})  {memory[kind] / MIB:8.1f} MiB beyond inputs and outputs")
    ratios = [checkpointed / full for full, checkpointed in zip(times["full"], times["sqrt"], strict=True)]
    print(
        f"  time {statistics.median(times['sqrt']) / statistics.median(times['full']):.2f} x "
        f"({min(ratios):.2f}-{max(ratios):.2f} by round), memory 1/{memory['full'] / memory['sqrt']:.0f}"
    )
    apart = (gradients["sqrt"] - gradients["full"]).abs().max() / gradients["full"].abs().max()
    print(f"  largest difference of dL/dU over its largest element: {apart:.1e}")


def million() -> None:
    """A million steps."""
    found = in_a_process(Case(1_000_000, 1, 8, 256, "sqrt", final_only=True))
    print(
        f"LSTM, I = 8, H = 256, B = 1, 1,000,000 steps, loss on the final state, checkpoint='sqrt': "
        f"{found['process'] / 2**30:.2f} GiB at the peak of the process (0.95 of outputs), {found['seconds']:.0f} s"
    )


def budgets() -> None:
    """A budget and what is taken of it."""
    print("LSTM, I = H = 256, B = 8, 4,000 steps: budget, taken beyond in- and outputs (MiB), seconds")
    for mib in (2, 4, 8, 16, 32, 64, 128, 256):
        found = in_a_process(Case(4000, checkpoint=mib * MIB))
        print(f"  {mib:4} {found['beyond'] / MIB:7.1f} {found['seconds']:7.2f}", flush=True)


def plot(path: str) -> None:
    """Time and memory by the number of steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lengths = [250, 500, 1000, 2000, 4000]
    kinds = {"full": ("full BPTT", "o-", "black"), "sqrt": ('checkpoint="sqrt"', "s--", "0.5")}
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for steps in lengths:
        for kind in kinds:
            # Seconds of one processor, the least of three rounds: others may be at work meanwhile.
            found[kind].append(in_a_process(Case(steps, checkpoint=kind, threads=1, rounds=3)))
            print(steps, kind, found[kind][-1], flush=True)
    figure, (seconds, memory) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for kind, (label, style, colour) in kinds.items():
        seconds.plot(lengths, [row["seconds"] for row in found[kind]], style, color=colour, label=label)
        memory.plot(lengths, [row["beyond"] / MIB for row in found[kind]], style, color=colour, label=label)
    for axes, what in ((seconds, "seconds of one processor"), (memory, "MiB beyond inputs and outputs")):
        axes.set(xlabel="time steps τ", ylabel=what, xlim=(0, None), ylim=(0, None))
        axes.grid(color="0.9")
        axes.legend(frameon=False)
    figure.suptitle("LSTM, I = H = 256, B = 8, forward and backward")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--budgets", action="store_true")
    parser.add_argument("--plot", metavar="FILE")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # what the processes are told
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure_here(Case(**json.loads(options.measure)))))
    elif options.plot:
        plot(options.plot)
    elif options.million:
        million()
    elif options.budgets:
        budgets()
    else:
        contest(options.rounds)


if __name__ == "__main__":
    main()
