"""`throughtime bench`."""

from __future__ import annotations

from enum import StrEnum
from json import dumps as format_json
from pathlib import Path
from typing import Annotated, Any

import typer

from throughtime.cli.output import note, write, write_json
from throughtime.errors import UsageError
from throughtime.storage import write_file


# Enumerations, as Typer takes no list of literals.
class Cell(StrEnum):
    """The layers there are."""

    RNN = "rnn"
    LSTM = "lstm"
    GRU = "gru"


class Passes(StrEnum):
    """What is done of a step of training."""

    FORWARD = "forward"
    BOTH = "forward+backward"


class Precision(StrEnum):
    """The arithmetic of the products."""

    FP32 = "fp32"
    BF16 = "bf16"


def recurrence(
    cells: Annotated[
        list[Cell] | None, typer.Option(help="rnn, lstm, gru. [default: all; lstm with --ragged]", metavar="CELL...")
    ] = None,
    hidden: Annotated[
        list[int] | None, typer.Option(help="Hidden sizes. [default: 128 256 512 1024]", metavar="H...", min=1)
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(help="Batch sizes. [default: 1 16 64; 16 64 with --ragged]", metavar="B...", min=1),
    ] = None,
    passes: Annotated[
        list[Passes] | None,
        typer.Option(
            help="forward, forward+backward. [default: both; the second with --ragged or --memory]", metavar="PASSES..."
        ),
    ] = None,
    precision: Annotated[
        list[Precision] | None, typer.Option(help="fp32, bf16 (autocast). [default: both]", metavar="PRECISION...")
    ] = None,
    steps: Annotated[int, typer.Option(help="Time steps of a sequence, T.", min=1)] = 100,
    ragged: Annotated[
        bool, typer.Option("--ragged", help="Sequences of 1 to T steps: lengths= against PackedSequence.")
    ] = False,
    memory: Annotated[bool, typer.Option("--memory", help="The peak memory of a training step, not its time.")] = False,
    rounds: Annotated[int, typer.Option(help="Rounds for each case, at least.", min=1)] = 5,
    seconds: Annotated[float, typer.Option(help="Seconds for each case, at least.", min=0)] = 1.0,
    threads: Annotated[int | None, typer.Option(help="Threads, of both sides. [default: torch's]", min=1)] = None,
    json: Annotated[
        Path | None,
        typer.Option(
            help="Write all as one JSON object to this file, anew after each case; - is standard output, without the "
            "table.",
            metavar="FILE",
        ),
    ] = None,
) -> None:
    """Time tt.nn.RNN, LSTM and GRU against torch.nn's.

    Both have the same weights and take turns in one run; times are medians over the rounds. Before anything is timed,
    outputs and gradients are compared. The peak is that of multiply-adds on registers alone, measured around each case.
    """
    if memory and passes and Passes.FORWARD in passes:
        raise UsageError("bench recurrence: --memory measures forward+backward; leave out --passes forward")
    from throughtime.cli.bench_tables import in_short, tables
    from throughtime.tasks.benchmarks import machine
    from throughtime.tasks.benchmarks import recurrence as benchmark
    from throughtime.tasks.benchmarks.memory import measure_memory
    from throughtime.tasks.benchmarks.summary import summary

    precisions, skipped = _possible(precision or list(Precision), benchmark.bf16_missing())
    cases = benchmark.cases(
        cells or ([Cell.LSTM] if ragged else list(Cell)),
        hidden or [128, 256, 512, 1024],
        batch or ([16, 64] if ragged else [1, 16, 64]),
        passes or ([Passes.BOTH] if ragged or memory else list(Passes)),
        precisions,
        steps=steps,
        ragged=ragged,
    )
    with machine.threads(threads) as number:
        report: dict[str, Any] = {
            "benchmark": "recurrence",
            "measured": "memory" if memory else "time",
            **machine.describe(),
            "skipped": skipped,
            "rows": [],
        }
        for position, case in enumerate(cases, 1):
            if memory:
                row = measure_memory(case, threads=number).as_dict()
            else:
                row = benchmark.measure(case, rounds=rounds, seconds=seconds).as_dict()
            note(f"[{position}/{len(cases)}] {case}: {in_short(row)}")
            report["rows"].append(row)
            report["summary"] = summary(report["rows"])
            if json and str(json) != "-":
                write_file(json, format_json(report, indent=1) + "\n")
    if str(json) == "-":
        write_json(report)
    else:
        write(tables(report))


def _possible(precisions: list[Precision], bf16_missing: str | None) -> tuple[list[Precision], list[str]]:
    """The precisions that can be measured, and why the others cannot.

    Raises:
        UsageError: there are none.
    """
    if bf16_missing is None or Precision.BF16 not in precisions:
        return precisions, []
    possible: list[Precision] = [precision for precision in precisions if precision != Precision.BF16]
    if not possible:
        raise UsageError(f"bench recurrence: bf16 cannot be measured: {bf16_missing}; use --precision fp32")
    note(f"bf16 is skipped: {bf16_missing}")
    return possible, [f"bf16: {bf16_missing}"]
