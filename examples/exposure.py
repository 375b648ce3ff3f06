"""What a network sees of its own outputs in training, and how well it then forecasts by itself: monthly sunspots.

    python examples/exposure.py --data ../shared/data/timeseries/monthly-sunspots.csv --seeds 5 --json exposure.json

The network reads ten years of monthly counts, then writes the next five years, each month from its own last one.
Training windows end in 1944; forecasts are made from every fourth month of 1945-1978 on. Five policies, the same
network, batches and number of steps; the error is in the units of the training series' standard deviation.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from throughtime.data.sequences import Sequences, TensorSource
from throughtime.models import ConditionalRecurrent
from throughtime.tasks import design
from throughtime.training.inputs import (
    FreeRunning,
    MixedLosses,
    ProfessorForcing,
    ScheduledSampling,
    TeacherForcing,
    TrainingInput,
)

READ, WRITTEN = 120, 60
SPLIT = (1944 - 1749 + 1) * 12
POLICIES = ("teacher forcing", "free-running", "mixed losses", "scheduled sampling", "professor forcing")


def series(path: Path) -> Tensor:
    """Square roots of the counts, brought to mean 0 and variance 1 over the training years."""
    with open(path, newline="") as file:
        counts = torch.tensor([float(row[1]) for row in list(csv.reader(file))[1:]])
    roots = counts.sqrt()
    return (roots - roots[:SPLIT].mean()) / roots[:SPLIT].std()


def windows(values: Tensor, every: int) -> Sequences:
    """Windows of 15 years: y the counts; x last month's count while it is known, and whether it is."""
    y = values.unfold(0, READ + WRITTEN + 1, every).T[..., None]  # (T + 1, N, 1)
    known = torch.zeros(len(y) - 1, y.shape[1], 1)
    known[:READ] = 1
    return Sequences(y[1:].contiguous(), torch.cat([y[:-1] * known, known], -1))


def policy(name: str, model: ConditionalRecurrent, steps: int) -> TrainingInput:
    """The policy of that name; its schedule ends with the training."""
    if name == "professor forcing":
        return ProfessorForcing(model, weight=1.0, hidden_size=32)
    return {
        "teacher forcing": TeacherForcing(),
        "free-running": FreeRunning("mean"),
        "mixed losses": MixedLosses(0.5, "mean"),
        "scheduled sampling": ScheduledSampling("linear", k=steps, feedback="mean"),
    }[name]


@torch.no_grad()
def forecast_error(model: ConditionalRecurrent, held_out: Sequences) -> dict[str, float]:
    """The root mean squared error over the months written, each from its own last one, and from the true one."""
    model.eval()
    sequences = model.prepare(held_out.x, held_out.targets)
    own = torch.zeros(sequences.external.shape[:2], dtype=torch.bool)
    errors = {}
    for name, begin in (("free-running", READ), ("teacher-forced", READ + WRITTEN)):
        own[begin:] = True
        o = model.run(sequences, own=own.clone(), feedback="mean").outputs
        errors[name] = float((o - held_out.targets)[READ:].square().mean().sqrt())
        own[:] = False
    return errors


def train(name: str, seed: int, values: Tensor, steps: int, folder: Path) -> dict[str, float]:
    """One network by one policy, from one seed."""
    torch.manual_seed(seed)
    model = ConditionalRecurrent(input_size=2, output="gaussian", output_size=1, cell="gru", hidden_size=32)
    fitted = windows(values[:SPLIT], 1)
    order = torch.randperm(len(fitted), generator=torch.Generator().manual_seed(seed))
    held_out = fitted.select(order[:100])
    rule = policy(name, model, steps)
    # The last model, not the best by teacher forcing, which would favour that policy: one evaluation, at the end.
    design.train(
        model,
        TensorSource(fitted.select(order[100:]), 32, seed=seed),
        held_out,
        folder,
        policy=rule,
        max_steps=steps,
        evaluate_every=steps,
        checkpoint_every=0,
        learning_rate=3e-3,
        seed=seed,
    )
    return forecast_error(model, windows(values[SPLIT - READ :], 4))


def simple_errors(values: Tensor) -> dict[str, float]:
    """The same error of forecasts that need no network; the last month is one that the networks have to write."""
    targets = windows(values[SPLIT - READ :], 4).targets
    solar_cycle = 132  # months
    earlier = windows(values[SPLIT - READ - solar_cycle :], 4).targets[:, : targets.shape[1]]
    forecasts = {"the mean": 0.0 * targets, "the last month": targets[READ - 1 : READ], "11 years before": earlier}
    return {name: float((forecast - targets)[READ:].square().mean().sqrt()) for name, forecast in forecasts.items()}


def main() -> None:
    """Train every policy from every seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="monthly-sunspots.csv")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=POLICIES)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    values = series(options.data)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in options.policies}
    for seed in range(options.seeds):
        for name in options.policies:
            with tempfile.TemporaryDirectory() as folder:
                results[name].append(train(name, seed, values, options.steps, Path(folder) / "run"))
            print(f"seed {seed}  {name:<20}", {k: round(v, 3) for k, v in results[name][-1].items()}, flush=True)
    print(f"\n{'policy':<20} {'free-running':>22} {'teacher-forced':>22}")
    for name, found in results.items():
        columns = []
        for kind in ("free-running", "teacher-forced"):
            errors = [row[kind] for row in found]
            spread = statistics.stdev(errors) if len(errors) > 1 else 0.0
            columns.append(f"{statistics.mean(errors):.3f} ± {spread:.3f}")
        print(f"{name:<20} {columns[0]:>22} {columns[1]:>22}")
    for name, error in simple_errors(values).items():
        print(f"{name:<20} {error:>14.3f}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
