"""What watching costs: training a language model with `training.flow_every`, and without.

Blocks of so many steps alternate in one process, each side with a model of its own; a block that watches measures the
flow of gradients once at its end. Times are medians of the blocks.

    python benchmarks/flow.py [--cell lstm] [--units 512] [--batch 32] [--window 128] [--every 50] [--rounds 5]
"""

from __future__ import annotations

import argparse
import inspect
import shlex
import statistics
import tempfile
import textwrap
import time
from pathlib import Path

import torch

from throughtime.configuration import validate
from throughtime.models.language import LanguageModel
from throughtime.tasks.benchmarks.machine import describe, threads
from throughtime.tasks.benchmarks.timing import compete
from throughtime.tasks.configuration import LanguageConfiguration
from throughtime.tasks.language import LanguageTask
from throughtime.tasks.texts import prepare_texts
from throughtime.training import distributed
from throughtime.training.stepper import Stepper


class Training:
    """A training that goes on by blocks of steps."""

    def __init__(self, book: Path, options: argparse.Namespace) -> None:
        values = {
            "data": {"paths": [str(book)]},
            "model": {"cell": options.cell, "hidden_size": options.units},
            "training": {"batch_size": options.batch, "window": options.window, "precision": "fp32", "device": "cpu"},
        }
        config = validate(LanguageConfiguration, values, where="benchmark")
        distribution = distributed.start(config.training)
        texts = prepare_texts(config.data, distribution)
        torch.manual_seed(0)
        model = LanguageModel(
            **config.model.model_dump(),
            vocabulary_size=texts.tokenizer.vocabulary_size,
            border_id=texts.tokenizer.border_id,
        )
        self.task = LanguageTask(model, texts, config, distribution)
        self.stepper = Stepper(self.task, model, config.training, distribution)
        self.position = 0

    def steps(self, count: int) -> None:
        """So many updates."""
        for _ in range(count):
            gradients = self.stepper.backward(self.position)
            self.position += 1
            self.stepper.update(self.position, gradients.count, 1.0)

    def measure(self) -> None:
        """What a training with `flow_every` does besides."""
        self.task.flow(self.task.batch(self.position), self.stepper.carried)


def seconds_of(action: object, rounds: int) -> float:
    """The median over some calls."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        action()  # type: ignore[operator]
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def main() -> None:
    """Print both sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", default="lstm", choices=["rnn", "lstm", "gru"])
    parser.add_argument("--units", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--every", type=int, default=50, help="training.flow_every: steps of a block")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    with threads(options.threads), tempfile.TemporaryDirectory() as folder:
        machine = describe()
        print(f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}, {machine['native']}")
        book = Path(folder) / "book.txt"
        book.write_text(20 * "".join(inspect.getsource(module) for module in (shlex, textwrap, argparse)), "utf-8")
        watched, plain = Training(book, options), Training(book, options)
        watched.steps(2)
        watched.measure()
        plain.steps(2)

        def with_flow() -> None:
            watched.steps(options.every)
            watched.measure()

        contest = compete(with_flow, lambda: plain.steps(options.every), rounds=options.rounds, seconds=0.0)
        step, measurement = seconds_of(lambda: plain.steps(1), 9), seconds_of(watched.measure, 9)
    print(f"{options.cell} {options.units}, batch {options.batch}, window {options.window}, flow every {options.every}")
    rounds = f"rounds {1 / contest.highest:.3f} to {1 / contest.lowest:.3f}"
    print(
        f"  a block of steps: {contest.ours:.3f} s with, {contest.theirs:.3f} s without, "
        f"with / without {1 / contest.ratio:.3f} ({rounds})"
    )
    print(
        f"  one step {1e3 * step:.0f} ms, one measurement {1e3 * measurement:.0f} ms: "
        f"{measurement / step / options.every:.1%} at every {options.every}, "
        f"5 % at every {round(measurement / step / 0.05)}"
    )


if __name__ == "__main__":
    main()
