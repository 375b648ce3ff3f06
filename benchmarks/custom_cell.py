"""An LSTM written as a cell of one's own: against the built-in one, both native, and against the reference engine.

The three alternate in one run; medians of their times, and the first one's time over each of the others'.

    python benchmarks/custom_cell.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import throughtime as tt

SIZES = [(128, 1), (128, 64), (256, 16), (256, 64), (512, 1), (512, 64)]
STEPS = 100


class State(NamedTuple):
    """h(t) and c(t), each (B, H)."""

    h: Tensor
    c: Tensor


class OwnLSTM(tt.Cell):
    """Eqs. 10.40-10.44 as a user would write them."""

    State = State

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__(inputs, units)
        self.U = torch.nn.Linear(inputs, 4 * units)
        self.W = torch.nn.Linear(units, 4 * units, bias=False)

    def project_inputs(self, inputs: Tensor) -> Tensor:
        """b + U x(t) of all four gates."""
        return self.U(inputs)

    def step(self, projected: Tensor, state: Any) -> Any:
        """The gates, the memory and the output."""
        i, f, g, o = (projected + self.W(state.h)).chunk(4, -1)
        c = torch.sigmoid(f) * state.c + torch.sigmoid(i) * torch.tanh(g)
        return State(torch.sigmoid(o) * torch.tanh(c), c)


def forward(cell: tt.Cell, engine: str, x: Tensor) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            tt.unfold(cell, x, engine=engine)

    return run


def both(cell: tt.Cell, engine: str, x: Tensor) -> Callable[[], None]:
    x = x.clone().requires_grad_()

    def run() -> None:
        tt.unfold(cell, x, engine=engine)[0].sum().backward()

    return run


def medians(runs: list[Callable[[], None]], rounds: int) -> list[float]:
    times: list[list[float]] = [[] for _ in runs]
    for attempt in range(rounds + 2):
        for run, found in zip(runs, times, strict=True):
            begin = time.perf_counter()
            run()
            if attempt >= 2:
                found.append(time.perf_counter() - begin)
    return [statistics.median(found) for found in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print(f"LSTM, T = {STEPS}, I = H, float32, {torch.get_num_threads()} threads, medians of {rounds}, milliseconds")
    print(f"{'H':>5} {'B':>3} {'':17} {'own':>8} {'built-in':>8} {'reference':>9}   own/built-in  reference/own")
    for units, batch in SIZES:
        torch.manual_seed(0)
        x = torch.randn(STEPS, batch, units)
        own, built_in = OwnLSTM(units, units), tt.nn.LSTMCell(units, units)
        assert tt.kernels.explain(own, x).engines == ("native",)
        for name, kind in (("forward", forward), ("forward, backward", both)):
            a, b, c = medians([kind(own, "native", x), kind(built_in, "native", x), kind(own, "reference", x)], rounds)
            print(
                f"{units:5} {batch:3} {name:17} {a * 1e3:8.2f} {b * 1e3:8.2f} {c * 1e3:9.2f}"
                f"   {a / b:12.2f} {c / a:14.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
