"""What each step's own gradient costs: norms of dL/dW(t), T of them for every parameter, against one backward pass.

`tt.bptt.step_gradients(..., reduce="norm")` has a forward pass, a backward pass, and norms. Beyond the forward pass it
may take twice as long as `backward()` of the same layer. Both take turns in one process; times are medians.

    python benchmarks/step_gradients.py [--layers lstm gru rnn] [--units 512] [--steps 100] [--batch 1 16 64]
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

import throughtime as tt
from throughtime.tasks.benchmarks.machine import describe, threads

# As much time as a row may take; a round of a small problem is repeated within it.
SECONDS_A_ROW = 4.0


class Times(NamedTuple):
    """Seconds: of the layer's forward and backward pass, of `step_gradients`, and of `sequence_gradients`."""

    forward: float
    backward: float
    steps: float
    sequences: float


def measured(layer: Any, inputs: Tensor, weights: Tensor) -> Times:
    """One round."""

    def loss(outputs: Tensor) -> Tensor:
        return (outputs * weights).sum()

    layer.zero_grad()
    began = time.perf_counter()
    value = loss(layer(inputs)[0])
    between = time.perf_counter()
    value.backward()
    ended = time.perf_counter()
    del value
    tt.bptt.step_gradients(layer, inputs, loss, reduce="norm")
    steps = time.perf_counter()
    tt.bptt.sequence_gradients(layer, inputs, loss, reduce="norm")
    return Times(between - began, ended - between, steps - ended, time.perf_counter() - steps)


def check(layer: Any, inputs: Tensor) -> None:
    """A wrong result has no speed: norms are those of the whole gradients, which sum to `.grad`."""
    few = inputs[:9]
    layer.zero_grad()
    layer(few)[0].square().sum().backward()
    whole, norms = (
        tt.bptt.step_gradients(layer, few, lambda outputs: outputs.square().sum(), reduce=reduce).parameters
        for reduce in ("full", "norm")
    )
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(whole[name].sum(0), parameter.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(norms[name], whole[name].flatten(1).norm(dim=1), rtol=1e-3, atol=1e-4)


def row(kind: str, options: argparse.Namespace, batch: int) -> str:
    """One line of the table."""
    torch.manual_seed(0)
    layer = getattr(tt.nn, kind.upper())(options.units, options.units)
    inputs = torch.randn(options.steps, batch, options.units)
    weights = torch.randn(options.steps, batch, options.units)
    check(layer, inputs)
    measured(layer, inputs, weights)
    gc.collect()
    rounds: list[Times] = []
    began = time.perf_counter()
    while len(rounds) < options.rounds or time.perf_counter() - began < SECONDS_A_ROW:
        rounds.append(measured(layer, inputs, weights))
    found = Times(*(statistics.median(column) for column in zip(*rounds, strict=True)))
    both = found.forward + found.backward
    return (
        f"{kind:5} {batch:5} {found.forward * 1e3:9.1f} {found.backward * 1e3:9.1f} {found.steps * 1e3:9.1f} "
        f"{(found.steps - found.forward) / found.backward:9.2f} {found.steps / both:9.2f} "
        f"{(found.sequences - found.forward) / found.backward:10.2f}"
    )


def main() -> None:
    """Print a table with a row for each kind of layer and each batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="+", default=["lstm", "gru", "rnn"], choices=["lstm", "gru", "rnn"])
    parser.add_argument("--units", type=int, default=512)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    with threads(options.threads):
        machine = describe()
        print(f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}, {machine['native']}")
        print(f"H = I = {options.units}, T = {options.steps}, norms of every step's (every sequence's) own gradient")
        print("layer batch   forward  backward  norms of  (steps - forward)  steps /   (sequences - forward)")
        print("                   ms        ms  steps ms   / backward  forward+backward   / backward")
        for kind in options.layers:
            for batch in options.batch:
                print(row(kind, options, batch))


if __name__ == "__main__":
    main()
