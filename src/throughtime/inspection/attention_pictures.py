"""An alignment as a picture: the source from left to right, the answer from top to bottom, dark where it looked.

Tokens stand as they are written, in whatever script, as long as some font of this machine has it: matplotlib's own
(DejaVu: Latin, Greek, Cyrillic, Arabic, Hebrew and more) or any that is installed. What no font has stands there by its
code points, U+6771. The source is drawn in the order in which it is read, from left to right in every script.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from throughtime.errors import UsageError
from throughtime.inspection.figures import write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from throughtime.inspection.attention import Alignment

FORMATS = (".png", ".svg", ".pdf")
_OWN_FONT = "DejaVu Sans"
# Matplotlib brings a font that has a box for every character: no better than code points.
_PLACEHOLDERS = "Last Resort"
# Inches for a token, and of the longest side.
_TOKEN, _LONGEST = 0.28, 40.0
# Signs that are not seen, and what stands for them.
_SPACES = {" ": "␣", "\u00a0": "⍽", "\u3000": "␣"}


def check_picture(path: Path) -> None:
    """Nothing, where the ending of the path is that of a format.

    Raises:
        UsageError: it is none.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"picture {path}: expected a name that ends in {', '.join(FORMATS)}, got {path.suffix!r}")


def draw_attention(alignment: Alignment, path: str | Path) -> tuple[str, ...]:
    """Draw an alignment; the characters that no font has, and that stand there as code points.

    Raises:
        UsageError: the path ends in none of .png, .svg, .pdf.
        StorageError: the disk is full, read-only or gone.
    """
    path = Path(path)
    check_picture(path)
    from matplotlib import rc_context

    tokens = (*alignment.source_tokens, *alignment.answer_tokens)
    families, lacking = fonts_for(sign for token in tokens for sign in token)
    with rc_context({"font.family": families, "font.size": 9, "text.usetex": False, "text.parse_math": False}):
        write_figure(_figure(alignment, frozenset(lacking)), path)
    return lacking


def fonts_for(signs: Iterable[str]) -> tuple[list[str], tuple[str, ...]]:
    """The fonts that have these characters, matplotlib's own first; and the characters that none has."""
    from matplotlib import font_manager

    manager = font_manager.fontManager
    families = [_OWN_FONT]
    lacking = {sign for sign in signs if sign not in _SPACES}
    lacking -= _drawn_by(font_manager.findfont(_OWN_FONT), lacking)
    for entry in manager.ttflist if lacking else ():
        if entry.name in families or entry.style != "normal" or _PLACEHOLDERS in entry.name:
            continue
        drawn = _drawn_by(entry.fname, lacking)
        if drawn:
            families.append(entry.name)
            lacking -= drawn
    return families, tuple(sorted(lacking))


def _drawn_by(font: str, signs: set[str]) -> set[str]:
    from matplotlib.ft2font import FT2Font

    try:
        known = FT2Font(font).get_charmap()
    except (OSError, RuntimeError):
        return set()  # removed since matplotlib listed it, or no font at all
    return {sign for sign in signs if ord(sign) in known}


def _figure(alignment: Alignment, lacking: frozenset[str]) -> Figure:
    # The object interface, not pyplot: no backend is chosen for the user's own program.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = [_label(token, lacking) for token in alignment.source_tokens]
    rows = [_label(token, lacking) for token in alignment.answer_tokens]
    each = min(_TOKEN, _LONGEST / max(len(columns), len(rows), 1))  # inches
    size = min(9.0, 72 * each * 0.75)  # points
    margin = 1.2 + size / 72 * 0.7 * max(map(len, rows), default=0)
    above = 0.8 + size / 72 * 0.7 * max(map(len, columns), default=0)
    figure = Figure(
        figsize=(max(3.5, margin + each * len(columns)), max(2.5, above + each * len(rows))),
        dpi=150,
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    shown = axes.imshow(alignment.weights.cpu().numpy(), cmap="Greys", vmin=0, vmax=1, aspect="auto")
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.tick_params(length=0)
    axes.set_xticks(range(len(columns)), columns, fontsize=size)
    axes.set_yticks(range(len(rows)), rows, fontsize=size)
    for label in axes.get_xticklabels():
        label.set_rotation(90 if len(label.get_text()) > 1 else 0)
    axes.set_xlabel("source")
    axes.set_ylabel("answer")
    figure.colorbar(shown, ax=axes, label="attention", fraction=0.05, pad=0.02)
    return figure


def _label(token: str, lacking: frozenset[str]) -> str:
    """A token as it is drawn."""
    if token and set(token) & lacking:
        return " ".join(f"U+{ord(sign):04X}" for sign in token)
    return "".join(_SPACES.get(sign, sign) for sign in token) if token else "∅"
