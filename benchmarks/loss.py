"""The loss for large vocabularies against PyTorch's: time and peak memory of readout + cross-entropy, both directions.

Ours is `tt.layers.linear_cross_entropy`; theirs is `cross_entropy(linear(h, weight, bias), targets)`, whose logits are
let go as soon as PyTorch itself can. Both make the summed loss and the gradients of h, weight and bias. Times are
medians over rounds that alternate in one process. Memory is the highest that a process of its own holds beyond what it
held before the step; what a first call loads is not counted.

    python benchmarks/loss.py [--positions 2240] [--units 650] [--words 33000] [--precision fp32 bf16] [--rounds 9]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from throughtime.layers import linear_cross_entropy
from throughtime.tasks.benchmarks.machine import describe, threads
from throughtime.tasks.benchmarks.timing import compete, multiply_add_peak

SIDES = ("ours", "torch")
# The fewest that do it, of 2 · positions · units · words operations each; where logits are many, ours computes four.
PRODUCTS = 3


class Problem(NamedTuple):
    """Leaves and targets."""

    h: Tensor
    weight: Tensor
    bias: Tensor
    targets: Tensor

    @classmethod
    def of(cls, positions: int, units: int, words: int) -> Problem:
        """Random, as they are at the beginning of a training."""
        torch.manual_seed(0)
        h = torch.randn(positions, units).tanh().requires_grad_()
        weight = torch.empty(words, units).uniform_(-(units**-0.5), units**-0.5).requires_grad_()
        return cls(h, weight, torch.zeros(words, requires_grad=True), torch.randint(words, (positions,)))


def step(side: str, problem: Problem, precision: str) -> Tensor:
    """The summed loss, and the gradients on the leaves."""
    for leaf in problem[:3]:
        leaf.grad = None
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        if side == "ours":
            total = linear_cross_entropy(*problem).sum()
        else:
            total = functional.cross_entropy(functional.linear(*problem[:3]), problem.targets, reduction="sum")
    total.backward()
    return total.detach()


def check(problem: Problem, precision: str) -> None:
    """A wrong result has no speed."""
    found = []
    for side in SIDES:
        total = step(side, problem, precision)
        found.append([total, *(leaf.grad for leaf in problem[:3])])
    tolerance = 2e-2 if precision == "bf16" else 1e-5
    for own, other in zip(*found, strict=True):
        assert float((own - other).norm() / other.norm()) < tolerance, "the two sides differ"


def memory_here(side: str, sizes: tuple[int, int, int], precision: str) -> int:
    """Bytes of a step at its peak in this process."""
    step(side, Problem.of(8, 16, 32), precision)
    problem = Problem.of(*sizes)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = status("VmRSS")
    step(side, problem, precision)
    return status("VmHWM") - before


def status(name: str) -> int:
    """A field of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024


def memory(side: str, options: argparse.Namespace, precision: str) -> int:
    """`memory_here` in a fresh process."""
    order = json.dumps([side, [options.positions, options.units, options.words], precision, options.threads])
    done = subprocess.run([sys.executable, __file__, "--memory", order], check=True, capture_output=True, text=True)
    return int(done.stdout)


def main() -> None:
    """Print a table of both sides for each precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=2240, help="positions, T · B")
    parser.add_argument("--units", type=int, default=650, help="units of the last layer")
    parser.add_argument("--words", type=int, default=33_000, help="size of the vocabulary")
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        side, sizes, precision, number = json.loads(options.memory)
        with threads(number):
            print(memory_here(side, sizes, precision))
        return
    sizes = options.positions, options.units, options.words
    with threads(options.threads):
        machine = describe()
        print(f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}, {machine['native']}")
        for precision in options.precision:
            problem = Problem.of(*sizes)
            check(problem, precision)
            contest = compete(
                lambda problem=problem, precision=precision: step("ours", problem, precision),
                lambda problem=problem, precision=precision: step("torch", problem, precision),
                rounds=options.rounds,
                seconds=0.0,
            )
            peak = multiply_add_peak(precision, options.threads)
            taken = {side: memory(side, options, precision) for side in SIDES}
            print(f"{precision}: {sizes[0]:,} positions, {sizes[1]:,} units, {sizes[2]:,} words")
            for side, seconds in (("ours", contest.ours), ("torch", contest.theirs)):
                speed = PRODUCTS * 2 * sizes[0] * sizes[1] * sizes[2] / seconds
                share = "" if peak is None else f" ({speed / peak:.0%} of the peak)"
                print(f"  {side:6} {seconds:7.3f} s  {speed / 1e9:5.0f} GFLOP/s{share}  {taken[side] / 1e6:7.1f} MB")
            print(
                f"  time ours / torch {1 / contest.ratio:.2f} (rounds {1 / contest.highest:.2f} to "
                f"{1 / contest.lowest:.2f}, {contest.rounds} of them); "
                f"memory torch / ours {taken['torch'] / taken['ours']:.1f}"
            )


if __name__ == "__main__":
    main()
