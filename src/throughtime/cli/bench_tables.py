"""What a benchmark's report looks like as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

_MIB = 1 << 20


def in_short(row: Mapping[str, Any]) -> str:
    """One row for the eye that waits."""
    ours, theirs = _sides(row)
    return f"{ours}, torch.nn {theirs}, ratio {row['ratio']:.2f}, engine {row['engine']}"


def tables(report: Mapping[str, Any]) -> str:
    """The machine, a table for each precision and pass, and the summary."""
    native = (
        f"native engine {report['native']}" if report["native"] else f"no native engine: {report['native_missing']}"
    )
    parts = [
        f"{report['processor']}, {report['threads']} threads, {report['cores']} cores; "
        f"throughtime {report['throughtime']}, {native}; PyTorch {report['torch']}",
        *[f"skipped: {reason}" for reason in report["skipped"]],
    ]
    build = _memory_table if report["measured"] == "memory" else _time_table
    for (precision, passes), rows in groupby(report["rows"], key=lambda row: (row["precision"], row["passes"])):
        group = list(rows)
        ragged = ", lengths 1 to T in no order" if group[0]["ragged"] else ""
        parts += ["", f"{precision}, {passes}, T = {group[0]['steps']}{ragged}", *build(group)]
    parts += ["", *_summary_table(report["summary"])]
    return "\n".join(parts) + "\n"


def _sides(row: Mapping[str, Any]) -> tuple[str, str]:
    if "ours_bytes" in row:
        return f"{row['ours_bytes'] / _MIB:.1f} MiB", f"{row['torch_bytes'] / _MIB:.1f} MiB"
    return f"{row['ours_seconds'] * 1e3:.3f} ms", f"{row['torch_seconds'] * 1e3:.3f} ms"


def _time_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    head = [
        "cell",
        "H",
        "B",
        "ours",
        "torch.nn",
        "ratio",
        "rounds",
        "GFLOP/s",
        "torch.nn",
        "of peak",
        "torch.nn",
        "engine",
    ]
    lines = [
        [
            *_case(row),
            *_sides(row),
            f"{row['ratio']:.2f}",
            f"{row['lowest_ratio']:.2f}-{row['highest_ratio']:.2f}",
            f"{row['ours_gflops']:.1f}",
            f"{row['torch_gflops']:.1f}",
            _percent(row["ours_share_of_peak"]),
            _percent(row["torch_share_of_peak"]),
            row["engine"],
        ]
        for row in rows
    ]
    return _aligned([head, *lines])


def _memory_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    head = ["cell", "H", "B", "ours", "torch.nn", "ratio", "engine"]
    return _aligned([head, *[[*_case(row), *_sides(row), f"{row['ratio']:.2f}", row["engine"]] for row in rows]])


def _summary_table(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    head = ["precision", "passes", "cell", "cases", "geometric mean", "lowest", "at", "of peak"]
    lines = []
    for group in groups:
        lowest, shares = group["lowest"], group["shares_of_peak"]
        lines.append(
            [
                group["precision"],
                group["passes"],
                group["cell"].upper(),
                str(group["cases"]),
                f"{group['mean_ratio']:.2f}",
                f"{lowest['ratio']:.2f}",
                f"H {lowest['hidden']} B {lowest['batch']}",
                ", ".join(f"{_percent(one['share'])} at H {one['hidden']} B {one['batch']}" for one in shares) or "-",
            ]
        )
    return ["ratio = torch.nn / ours: above 1, ours takes less", *_aligned([head, *lines], left=3)]


def _case(row: Mapping[str, Any]) -> list[str]:
    return [row["cell"].upper(), str(row["hidden"]), str(row["batch"])]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _aligned(lines: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Columns of equal width; the first ones and the last to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    last = len(widths) - 1
    return [
        "  ".join(
            word.ljust(width) if column < left or column == last else word.rjust(width)
            for column, (word, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
