"""Design B taught: all time steps as one batched operation, against the same network step by step.

All compute the same losses and gradients: with teacher forcing, y(t-1) is known beforehand. They alternate in one run;
medians of forward and backward together, and their ratios: over the design's own loop on the engine told, which can see
its outputs too, and, for tanh units, over the plainest loop that one would write in PyTorch, which cannot.

    python benchmarks/output_recurrent.py [--rounds 5] [--steps 1000] [--hidden 512] [--batch 32] [--size 32]
        [--cells rnn gru]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor
from torch.nn import functional

import throughtime as tt
from throughtime.models.feedback import FeedbackCell


def seconds(model: tt.models.OutputRecurrent, x: Tensor, y: Tensor, own: Tensor | None) -> float:
    model.zero_grad()
    begin = time.perf_counter()
    model(x, targets=y, own=own).sum().backward()
    return time.perf_counter() - begin


def plain_seconds(model: tt.models.OutputRecurrent, x: Tensor, y: Tensor) -> float:
    """h = tanh(b + U [x(t), y(t-1)]), o = c + V h, L(t), one step after the other."""
    weights, readout = model.recurrent.step_equations()[0].weights, model.readout
    model.zero_grad()
    begin = time.perf_counter()
    bias, size = weights.bias_ih + weights.bias_hh, len(readout.bias_ho)
    fed, total = torch.zeros(x.shape[1], size), x.new_zeros(())
    for t in range(len(x)):
        h = torch.tanh(functional.linear(torch.cat([x[t], fed], -1), weights.weight_ih, bias))
        o = functional.linear(h, readout.weight_ho, readout.bias_ho)
        if y.is_floating_point():
            total, fed = total + functional.mse_loss(o, y[t], reduction="sum") / 2, y[t]
        else:
            total = total + functional.cross_entropy(o, y[t], reduction="sum")
            fed = functional.one_hot(y[t], size).float()
    total.backward()
    return time.perf_counter() - begin


def gradients(model: tt.models.OutputRecurrent) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rounds", 5), ("steps", 1000), ("hidden", 512), ("batch", 32), ("size", 32)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--cells", nargs="+", default=["rnn"])
    parser.add_argument("--outputs", nargs="+", default=["categorical", "gaussian"])
    sizes = parser.parse_args()
    torch.manual_seed(0)
    x, numbers = (torch.randn(sizes.steps, sizes.batch, sizes.size) for _ in range(2))
    categories = torch.randint(sizes.size, (sizes.steps, sizes.batch))
    never = torch.zeros(sizes.steps, sizes.batch, dtype=torch.bool)
    print(f"T = {sizes.steps}, B = {sizes.batch}, H = {sizes.hidden}, I = O = {sizes.size}, float32, "
          f"{torch.get_num_threads()} threads, forward + backward, medians of {sizes.rounds}")  # fmt: skip
    columns = ("cell", "outputs", "loop engine", "at once s", "step by step s", "ratio", "plain s", "ratio")
    print(*(f"{name:>{width}}" for name, width in zip(columns, (5, 12, 12, 10, 15, 6, 8, 6), strict=True)))
    for cell in sizes.cells:
        for output in sizes.outputs:
            torch.manual_seed(1)
            model = tt.models.OutputRecurrent(
                input_size=sizes.size, output_size=sizes.size, hidden_size=sizes.hidden, cell=cell, output=output
            )
            y = categories if output == "categorical" else numbers
            loop = FeedbackCell(model, sampled=False)
            (engine,) = tt.kernels.explain(loop, torch.zeros(sizes.steps, sizes.batch, loop.input_size)).engines
            at_once, by_step, plainly = [], [], []
            for attempt in range(sizes.rounds + 1):
                a = seconds(model, x, y, None)
                right = gradients(model)
                b = seconds(model, x, y, never)
                torch.testing.assert_close(gradients(model), right, rtol=1e-3, atol=1e-3 * float(right.abs().max()))
                plain = plain_seconds(model, x, y) if cell == "rnn" else float("nan")
                torch.testing.assert_close(gradients(model), right, rtol=1e-3, atol=1e-3 * float(right.abs().max()))
                if attempt:
                    plainly.append(plain)
                    at_once.append(a)
                    by_step.append(b)
            a, b, c = (statistics.median(times) for times in (at_once, by_step, plainly))
            print(f"{cell:>5} {output:>12} {engine:>12} {a:10.3f} {b:15.3f} {b / a:6.1f} {c:8.3f} {c / a:6.1f}",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
