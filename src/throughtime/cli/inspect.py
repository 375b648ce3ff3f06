"""`throughtime inspect unfold`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from throughtime.cli.output import note
from throughtime.errors import UsageError

_STEPS_OF_A_RUN = 5


def unfold(
    out: Annotated[Path, typer.Option(help="The picture to write: .svg or .png.", metavar="PATH")],
    run: Annotated[
        Path | None,
        typer.Argument(help="Run folder of a trained model: its graph, with the gradient on each edge.", metavar="RUN"),
    ] = None,
    design: Annotated[
        str | None,
        typer.Option(
            help="A design, where there is no RUN: hidden-recurrent, output-recurrent, sequence-summary, "
            "context-to-sequence, conditional-recurrent, language-model or bidirectional.",
            metavar="NAME",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help=f"Time steps 1..τ. [default: of a design t-1, t, t+1; of a run 1..{_STEPS_OF_A_RUN}]"),
    ] = None,
    layers: Annotated[int | None, typer.Option(help="Recurrent layers of a design. [default: 1]")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Text for the gradients of RUN. [default: what it was trained on]", metavar="PATH..."),
    ] = None,
) -> None:
    """Draw a recurrent graph and the same graph unfolded over time."""
    from throughtime.inspection.graph_pictures import check_picture, draw_unfolding
    from throughtime.inspection.unfolded_graph import DESIGNS, recurrent_graph, unfolded_graph

    check_picture(out)
    if (run is None) == (design is None):
        raise UsageError(
            f"inspect unfold: expected a run folder or a --design, got {'neither' if run is None else 'both'}; "
            f"designs are {', '.join(DESIGNS)}"
        )
    gradients = None
    if run is not None:
        from throughtime.cli.right_command import refuse_pairs
        from throughtime.inspection.edge_gradients import run_gradients

        if layers is not None:
            raise UsageError("inspect unfold: --layers is for a --design; a run has its own number of them")
        steps = _STEPS_OF_A_RUN if steps is None else steps
        refuse_pairs(run, "inspect unfold")
        design, layers, gradients = run_gradients(run, steps, data=data or ())
    elif data:
        raise UsageError("inspect unfold: --data is for a run folder; a --design alone has no gradients")
    assert design is not None
    one = 1 if layers is None else layers
    recurrent, unfolded = recurrent_graph(design, num_layers=one), unfolded_graph(design, steps, num_layers=one)
    draw_unfolding(recurrent, unfolded, out, gradients=gradients)
    note(f"drawn: {out}")
