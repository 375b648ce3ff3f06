"""What echo state networks predict: the Mackey-Glass series, run freely, and the monthly sunspots, one month ahead.

The readout is fitted in one pass over the first part of a series and tested on the rest; every line gives the median
and the range over seeds of the reservoir. The error is the normalised root mean squared one, 1 for predicting the mean.

    python benchmarks/echo_state.py [--seeds 5] [--sunspots ../shared/data/timeseries/monthly-sunspots.csv]
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from throughtime.models import EchoStateNetwork
from throughtime.models.ridge import RidgeMoments


def mackey_glass(steps: int, discard: int = 1000) -> Tensor:
    """ẋ = 0.2 x(t-17) / (1 + x(t-17)^10) - 0.1 x(t), by Runge-Kutta at steps of 0.1, a value for each unit of time."""
    delay, inner = 170, 10
    x = [1.2] * (delay + 1)

    def slope(now: float, delayed: float) -> float:
        return 0.2 * delayed / (1 + delayed**10) - 0.1 * now

    for _ in range((steps + discard) * inner):
        now, old, older = x[-1], x[-1 - delay], x[-delay]
        k1 = slope(now, old)
        k2 = slope(now + 0.05 * k1, (old + older) / 2)
        k3 = slope(now + 0.05 * k2, (old + older) / 2)
        x.append(now + 0.1 * (k1 + 2 * k2 + 2 * k3 + slope(now + 0.1 * k3, older)) / 6)
    return torch.tensor(x[-steps * inner :: inner], dtype=torch.float64)


def nrmse(predictions: Tensor, targets: Tensor, deviation: Tensor) -> float:
    return float((predictions - targets).square().mean().sqrt() / deviation)


def mackey_glass_errors(seed: int, series: Tensor, train: int) -> tuple[float, float, float]:
    """One step ahead; 84 steps ahead, run freely from 100 places of the test part; seconds of fitting."""
    x = torch.tanh(series - 1)[:, None, None]  # (T, 1, 1), as Jaeger & Haas do
    began = time.perf_counter()
    model = EchoStateNetwork(
        hidden_size=1000, spectral_radius=1.1, leak_rate=0.5, input_scaling=0.5, sparsity=0.99, ridge=1e-9, seed=seed
    )
    model.fit([(x[:train], x[1 : train + 1])])
    seconds = time.perf_counter() - began
    deviation = x.std()
    ahead, _ = model.predict(x[:-1])
    starts = range(train, len(x) - 400, (len(x) - 400 - train) // 100)
    prompts = torch.cat([x[s : s + 300] for s in starts], 1)  # (300, B, 1)
    truth = torch.cat([x[s + 383] for s in starts], 0)
    far = model.generate(prompts, 84)[0][-1]
    return nrmse(ahead[train:], x[train + 1 :], deviation), nrmse(far, truth, deviation), seconds


def sunspot_errors(seed: int, series: Tensor, train: int) -> float:
    x = (series / 100)[:, None, None]
    model = EchoStateNetwork(
        hidden_size=100, spectral_radius=0.9, leak_rate=0.1, input_scaling=0.3, ridge=0.1, seed=seed
    )
    model.fit([(x[:train], x[1 : train + 1])])
    return nrmse(model.predict(x[:-1])[0][train:], x[train + 1 :], x[train + 1 :].std())


def autoregression(series: Tensor, train: int, order: int) -> float:
    """The linear prediction from the last `order` values, least squares."""
    x = series / 100
    rows, targets = x.unfold(0, order, 1)[:-1], x[order:, None]
    split = train + 1 - order
    moments = RidgeMoments(order, 1)
    moments.add(rows[:split], targets[:split])
    weight, bias = moments.solve(1e-9)
    return nrmse(rows[split:] @ weight.mT + bias, targets[split:], targets[split:].std())


def line(name: str, values: list[float]) -> None:
    print(f"{name:60} {statistics.median(values):.3g}   ({min(values):.3g} to {max(values):.3g})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sunspots", type=Path)
    arguments = parser.parse_args()
    seeds = range(10, 10 + arguments.seeds)  # the settings were chosen on others, the sunspots' within the first part
    chaos = mackey_glass(6000)
    found = [mackey_glass_errors(seed, chaos, 3000) for seed in seeds]
    line("Mackey-Glass (17), 1 step ahead, NRMSE", [one for one, _, _ in found])
    line("Mackey-Glass (17), 84 steps run freely, NRMSE", [far for _, far, _ in found])
    line("seconds to draw 1,000 units and fit 3,000 steps", [seconds for _, _, seconds in found])
    if arguments.sunspots is None:
        return
    with arguments.sunspots.open(newline="") as file:
        series = torch.tensor([float(row[1]) for row in list(csv.reader(file))[1:]], dtype=torch.float64)
    train = 2000
    line("sunspots, 1 month ahead, NRMSE", [sunspot_errors(seed, series, train) for seed in seeds])
    line("sunspots, linear, the last 12 months", [autoregression(series, train, 12)])
    line("sunspots, linear, the last 24 months", [autoregression(series, train, 24)])
    last = series / 100
    line("sunspots, the last month again", [nrmse(last[train:-1], last[train + 1 :], last[train + 1 :].std())])


if __name__ == "__main__":
    main()
