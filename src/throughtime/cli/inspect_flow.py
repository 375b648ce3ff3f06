"""`throughtime inspect flow`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from throughtime.cli.output import note, write, write_json
from throughtime.cli.right_command import refuse_pairs


def inspect_flow(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of trained models.", metavar="RUN...")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Text to measure on: files, folders or globs; several may follow one --data. "
            "[default: each run's held-out text]",
            metavar="PATH...",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Picture: .png, .svg or .pdf. [default: flow.png in the first RUN]")
    ] = None,
    losses: Annotated[int, typer.Option(min=1, help="Losses L(t), evenly spaced over the window.")] = 16,
    lags: Annotated[
        int | None, typer.Option(min=1, help="The longest lag, in steps. [default: the whole window]")
    ] = None,
    jacobians: Annotated[
        int, typer.Option(min=0, help="Leading singular values of ∂h(t)/∂h(t−k) to find; 0: none.")
    ] = 1,
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
) -> None:
    """Show how far gradients reach back through time: a table, and a picture by loss and lag of every run."""
    from throughtime.inspection.flow import flow
    from throughtime.inspection.flow_pictures import draw_flow

    for run in runs:
        refuse_pairs(run, "inspect flow")
    names = {str(run) if len({other.name for other in runs}) < len(runs) else run.resolve().name: run for run in runs}
    flows = {
        name: flow(run, data=data or (), at=losses, max_lag=lags, jacobians=jacobians) for name, run in names.items()
    }
    picture = out or runs[0] / "flow.png"
    draw_flow(flows, picture)
    if json:
        write_json({name: found.as_dict() for name, found in flows.items()})
    else:
        write("\n\n".join(f"{name}\n{found}" for name, found in flows.items()) + "\n")
    note(f"picture: {picture}")
