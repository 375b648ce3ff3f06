"""Memory and time of preparing a large text: `python benchmarks/data_memory.py [--gigabytes 2]`.

Writes a text of that size into a temporary folder (removed at the end; four times the size must be free), and runs each
step in a process of its own, whose peak resident memory is reported: preparing it as bytes, the second start, reading
batches, training a language model on it (`train lm`, two starts), and training BPE on it. The first row is a process
that only imports what the others do.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

BATCHES = 4000


def write_text(path: Path, size: int) -> None:
    """Lines of words with Zipf's frequencies, 200,000 distinct ones."""
    generator = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(generator.choice(letters, length)) for length in generator.integers(2, 12, 200_000)]
    left = size
    with open(path, "wb") as file:
        while left > 0:
            ranks = np.minimum(generator.zipf(1.2, 500_000), len(words)) - 1
            drawn = [words[rank] for rank in ranks.tolist()]
            lines = [" ".join(drawn[at : at + 12]) for at in range(0, len(drawn), 12)]
            left -= file.write(("\n".join(lines) + "\n").encode()[:left])


def nothing(path: Path) -> str:
    from throughtime.data import Tokenizer, TokenStreams

    return f"{Tokenizer.__name__}, {TokenStreams.__name__} imported"


def prepare_bytes(path: Path) -> str:
    from throughtime.data import TextSource, Tokenizer, prepare

    prepared = prepare(TextSource([path]), Tokenizer.train("bytes"))
    return f"{len(prepared.tokens):,} tokens"


def read_batches(path: Path) -> str:
    from throughtime.data import TextSource, Tokenizer, TokenStreams, prepare

    streams = TokenStreams(prepare(TextSource([path]), Tokenizer.train("bytes")), 64, 256)
    # Spread over the epoch, so that all of the file is touched.
    stride = max(1, streams.batches_per_epoch // BATCHES)
    count = sum(streams.batch(index * stride).count for index in range(BATCHES))
    return f"{BATCHES:,} batches, {count:,} tokens"


def train_model(path: Path) -> str:
    from throughtime.tasks.language import train

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        settings = ["training.max_steps=20", "training.evaluate_every=1000", "model.hidden_size=128"]
        small = path.parent / "held-out.txt"
        small.write_text("some words of a text that is not in the other one\n" * 2000)
        outcome = train([str(path)], Path(folder) / "run", valid=[str(small)], overrides=settings)
    return f"{outcome.steps} steps"


def train_bpe(path: Path) -> str:
    from throughtime.data import TextSource, Tokenizer

    return f"{Tokenizer.train('bpe', TextSource([path])).vocabulary_size:,} ids"


STEPS: dict[str, Callable[[Path], str]] = {
    "imports alone": nothing,
    "prepare as bytes": prepare_bytes,
    "second start": prepare_bytes,
    "read batches": read_batches,
    "train lm": train_model,
    "train lm again": train_model,
    "train BPE": train_bpe,
}


def run_step(name: str, path: Path) -> None:
    """One step in this process; prints a line of JSON."""
    STEPS["imports alone"](path)
    start = time.perf_counter()
    outcome = STEPS[name](path)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"outcome": outcome, "seconds": seconds, "peak": peak}))


def main() -> None:
    """Run every step in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the text (10^9 bytes)")
    parser.add_argument("--step", nargs=2, metavar=("NAME", "PATH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        run_step(options.step[0], Path(options.step[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        write_text(path, int(options.gigabytes * 1e9))
        # Its time lies in the past, as that of a text which was not written a second ago.
        os.utime(path, (1e9, 1e9))
        print(
            f"text of {path.stat().st_size / 1e9:.1f} GB\n{'step':18}{'seconds':>9}{'MB/s':>8}{'peak MiB':>10}  outcome"
        )
        for name in STEPS:
            command = [sys.executable, __file__, "--step", name, str(path)]
            environment = {**os.environ, "THROUGHTIME_CACHE": f"{folder}/cache"}
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            row = json.loads(done.stdout)
            whole = name in ("prepare as bytes", "train BPE")
            rate = f"{path.stat().st_size / 1e6 / row['seconds']:.0f}" if whole else ""
            peak = row["peak"] / (1 << 20)
            print(f"{name:18}{row['seconds']:9.3f}{rate:>8}{peak:10.0f}  {row['outcome']}", flush=True)


if __name__ == "__main__":
    main()
