"""`throughtime inspect attention`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from throughtime.cli.output import note, write, write_json
from throughtime.cli.right_command import expect_task


def inspect_attention(
    run: Annotated[Path, typer.Argument(help="Run folder of a model of pairs.", metavar="RUN")],
    input_: Annotated[str, typer.Option("--input", help="The source to answer.", metavar="TEXT")],
    answer: Annotated[int, typer.Option(help="Which answer: 1 is the best, 2 the second ...", min=1)] = 1,
    beam: Annotated[
        int | None, typer.Option(help="Beginnings kept at each step; 1: greedy. [default: as in training]", min=1)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Picture: .png, .svg or .pdf. [default: attention.png in RUN]")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object with all weights instead of a table.")] = False,
) -> None:
    """Show where a model looked at the source for each token of its answer: a picture and a table.

    The table has a line for each token of the answer: the share of attention that its greatest place had, and which
    that is. What no font of this machine can draw stands in the picture as code points, such as U+6771.
    """
    expect_task(run, "transduce", "inspect attention")
    from throughtime.inspection.attention import attention
    from throughtime.inspection.attention_pictures import check_picture, draw_attention

    picture = out or run / "attention.png"
    check_picture(picture)
    found = attention(run, input_, answer=answer, **({} if beam is None else {"beam": beam}))
    lacking = draw_attention(found, picture)
    if json:
        write_json(found.as_dict())
    else:
        write(f"{found.answer}\n{found}\n")
    if found.unknown:
        note(f"not in the vocabulary, read as unknown: {', '.join(map(repr, found.unknown))}")
    if found.cut:
        note(f"cut at {len(found.source_tokens):,} tokens (data.max_length): the last {found.cut:,} were not read")
    if lacking:
        note(f"no font of this machine has {' '.join(lacking)}: drawn as code points; install a font that has them")
    note(f"picture: {picture}")
