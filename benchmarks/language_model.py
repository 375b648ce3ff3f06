"""Tokens per second of `throughtime train lm` against a bare PyTorch script with the same model and data.

Both train the same byte-level language model (embedding → LSTM → readout, truncated BPTT with the state carried over,
clipped gradients, AdamW) on the same text, in processes of their own, alternating within one run; what is compared is
the medians over the rounds. The first steps, in which kernels warm up, do not count on either side.

    python benchmarks/language_model.py [--rounds 5] [--steps 60] [--precision fp32 bf16]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HIDDEN, EMBEDDING, BATCH, WINDOW, WARM_UP = 512, 64, 64, 128, 10


def bare(text: Path, steps: int, precision: str) -> float:
    """What one would write by hand: tokens per second of a plain PyTorch loop."""
    import torch
    from torch import nn
    from torch.nn import functional

    torch.manual_seed(0)
    data = torch.frombuffer(bytearray(text.read_bytes()), dtype=torch.uint8).long()
    length = len(data) // BATCH
    rows = data[: length * BATCH].view(BATCH, length).t().contiguous()  # (time, B)
    embedding, lstm, readout = nn.Embedding(257, EMBEDDING), nn.LSTM(EMBEDDING, HIDDEN), nn.Linear(HIDDEN, 257)
    parameters = [*embedding.parameters(), *lstm.parameters(), *readout.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, fused=True)
    state, began = None, 0.0
    for step in range(steps):
        if step == WARM_UP:
            began = time.perf_counter()
        start = step * WINDOW
        inputs, targets = rows[start : start + WINDOW], rows[start + 1 : start + WINDOW + 1]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            hidden, state = lstm(embedding(inputs), state)
            logits = readout(hidden)
        loss = functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        state = tuple(tensor.detach().float() for tensor in state)
        if step % 10 == 9:
            print(f"step {step + 1} loss {loss.item():.3f}", file=sys.stderr)
    return (steps - WARM_UP) * BATCH * WINDOW / (time.perf_counter() - began)


def throughtime(text: Path, steps: int, precision: str) -> float:
    """The same by the command line, as a user runs it; the speed is read from metrics.jsonl."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        settings = {
            "data.valid_fraction": 0.01,
            "model.hidden_size": HIDDEN,
            "model.embedding_size": EMBEDDING,
            "training.batch_size": BATCH,
            "training.window": WINDOW,
            "training.max_steps": steps,
            "training.log_every": WARM_UP,
            "training.evaluate_every": steps,
            "training.precision": precision,
        }
        command = [sys.executable, "-m", "throughtime", "train", "lm", "--data", str(text), "--run", str(run)]
        for key, value in settings.items():
            command += ["--set", f"{key}={value}"]
        subprocess.run(command, check=True, capture_output=True)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds = {line["step"]: line["seconds"] for line in lines if line["kind"] == "train"}
    return (steps - WARM_UP) * BATCH * WINDOW / (seconds[steps] - seconds[WARM_UP])


def bare_in_a_process(text: Path, steps: int, precision: str) -> float:
    """`bare` in a fresh process, as `throughtime` has one."""
    command = [sys.executable, __file__, "--bare", str(text), "--steps", str(steps), "--precision", precision]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def write_text(path: Path) -> None:
    """The source of Python's standard library as one text."""
    from throughtime.data.paths import stdlib_files

    path.write_text("".join(file.read_text("utf-8", errors="replace") for file in stdlib_files()), "utf-8")


def main() -> None:
    """Alternate the two sides and print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        print(bare(options.bare, options.steps, options.precision[0]))
        return
    sides = {"throughtime": throughtime, "bare": bare_in_a_process}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "stdlib.txt"
        write_text(text)
        for precision in options.precision:
            speeds: dict[str, list[float]] = {name: [] for name in sides}
            for number in range(options.rounds):
                for name in list(sides)[:: 1 if number % 2 else -1]:
                    speeds[name].append(sides[name](text, options.steps, precision))
            median = {name: statistics.median(values) for name, values in speeds.items()}
            ratios = [ours / theirs for ours, theirs in zip(speeds["throughtime"], speeds["bare"], strict=True)]
            print(
                f"{precision}: throughtime {median['throughtime']:,.0f} tokens/s, bare PyTorch {median['bare']:,.0f} "
                f"tokens/s, ratio of medians {median['throughtime'] / median['bare']:.3f} "
                f"(rounds {min(ratios):.2f} to {max(ratios):.2f})"
            )


if __name__ == "__main__":
    main()
