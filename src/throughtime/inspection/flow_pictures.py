"""The flow of gradients as a picture: heat maps of loss by lag, and curves by lag, several networks side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from throughtime.errors import UsageError
from throughtime.inspection.figures import write_figure
from throughtime.recurrence.flow import Flow, LayerFlow

FORMATS = (".png", ".svg", ".pdf")
# Less than this of a gradient is as good as nothing; so much more of it is as good as infinity.
_LEAST, _MOST = 1e-8, 1e8
# Curves go on beyond, out of the picture, as far as matplotlib can reckon.
_FAR = 1e30
# Told apart in grey, too: by dashes, by markers and by how dark they are.
_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#000000", "linestyle": "-", "marker": "o"},
    {"color": "#c1440e", "linestyle": "--", "marker": "s"},
    {"color": "#2a78b8", "linestyle": "-.", "marker": "^"},
    {"color": "#7a7a7a", "linestyle": ":", "marker": "D"},
    {"color": "#3f6b2a", "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "v"},
    {"color": "#9a6bb0", "linestyle": (0, (1, 1)), "marker": "P"},
)


class _Panel(NamedTuple):
    """One layer of one network."""

    title: str
    layer: LayerFlow
    at: list[int]
    lags: tuple[int, ...]

    def relative(self) -> Tensor:
        """‖∂L(t)/∂h(t-k)‖ / ‖∂L(t)/∂h(t)‖ of each t, sequence and lag, (N, B, K + 1); NaN where no loss is."""
        norms = self.layer.of_output.cpu()
        first = norms[..., :1]
        return norms / first.where(first > 0, np.nan)


def draw_flow(flows: Mapping[str, Flow], path: str | Path) -> None:
    """Draw what `tt.bptt.flow` has measured, one column for each layer of each network, in the order given.

    Above: heat maps, the loss at step t from top to bottom, the lag k from left to right, the colour
    log₁₀ ‖∂L(t)/∂h(t-k)‖ / ‖∂L(t)/∂h(t)‖, the geometric mean over sequences, on one scale for all. Below: its median by
    lag with the band between the 10 % and 90 % quantiles; and the largest singular value of ∂h(t)/∂h(t-k) where every
    flow has it. The ending of `path` says which format: .png, .svg or .pdf.

    Raises:
        UsageError: another ending, no flows, or more layers than can be told apart.
        StorageError: the disk is full, read-only or gone.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"draw_flow: {path}: expected a name ending in {', '.join(FORMATS)}, got {path.suffix!r}")
    panels = [panel for name, flow in flows.items() for panel in _panels(name, flow)]
    if not 1 <= len(panels) <= len(_STYLES):
        raise UsageError(
            f"draw_flow: expected 1 to {len(_STYLES)} layers in all, got {len(panels)}; draw fewer at once"
        )
    # The object interface, not pyplot: no backend is chosen for the user's own program.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"font.size": 9}):
        figure = Figure(figsize=(max(7.5, 2.9 * len(panels) + 0.9), 6.4), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        parts: Any = figure.subfigures(2, 1, height_ratios=(1, 1.15))
        _heat_maps(parts[0], panels)
        _curves(parts[1], panels)
        write_figure(figure, path)


def _panels(name: str, flow: Flow) -> list[_Panel]:
    """One for each layer, the bottom one first."""
    several = len(flow.layers) > 1
    return [
        _Panel(f"{name}, layer {number}" if several else name, layer, flow.at.tolist(), flow.jacobian_lags)
        for number, layer in enumerate(flow.layers)
    ]


def _heat_maps(figure: Any, panels: Sequence[_Panel]) -> None:
    """t by lag, all on one scale."""
    maps = [panel.relative().clamp(_LEAST, _MOST).log10().nanmean(1).numpy() for panel in panels]
    finite = np.concatenate([values[np.isfinite(values)] for values in maps])
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (-1.0, 0.0)
    if high - low < 1:
        low = high - 1
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    shown = None
    for axes, panel, values in zip(every, panels, maps, strict=True):
        axes.set_facecolor("white")
        shown = axes.pcolormesh(
            np.arange(values.shape[1] + 1) - 0.5,
            np.arange(values.shape[0] + 1) - 0.5,
            np.ma.masked_invalid(values),
            cmap="cividis",
            vmin=low,
            vmax=high,
            rasterized=True,
        )
        axes.invert_yaxis()
        rows = np.unique(np.linspace(0, len(panel.at) - 1, min(5, len(panel.at))).round().astype(int))
        axes.set_yticks(rows, [str(panel.at[row]) for row in rows])
        axes.set_xlabel("lag k (steps)")
        axes.set_title(panel.title, fontweight="bold")
    every[0].set_ylabel("loss at step t")
    label = "log₁₀ of ‖∂L(t)/∂h(t−k)‖\nrelative to lag 0"
    ends = ("min" if low <= np.log10(_LEAST) else "") + ("max" if high >= np.log10(_MOST) else "")
    extend = {"": "neither", "minmax": "both"}.get(ends, ends)
    figure.colorbar(shown, ax=list(every), label=label, shrink=0.9, pad=0.01, extend=extend)


def _curves(figure: Any, panels: Sequence[_Panel]) -> None:
    """The medians by lag, and the largest singular values."""
    with_values = all(panel.layer.singular_values is not None for panel in panels)
    every = figure.subplots(1, 2 if with_values else 1, squeeze=False)[0]
    for panel, style in zip(panels, _STYLES, strict=False):
        flat = panel.relative().flatten(0, 1)
        quantiles = [flat.nanquantile(share, 0).clamp(1 / _FAR, _FAR).numpy() for share in (0.1, 0.5, 0.9)]
        lags = np.arange(flat.shape[1])
        every[0].fill_between(lags, quantiles[0], quantiles[2], color=style["color"], alpha=0.15, linewidth=0)
        every[0].plot(lags, quantiles[1], label=panel.title, markevery=_marked(len(lags)), markersize=4.5, **style)
        medians = panel.layer.median_singular_values
        if with_values and medians is not None:
            every[1].plot(panel.lags, medians[:, 0].cpu().clamp(1 / _FAR, _FAR).numpy(), markersize=4.5, **style)
    every[0].set_ylabel("‖∂L(t)/∂h(t−k)‖ relative to lag 0\nmedian, and 10 % to 90 %")
    if with_values:
        every[1].set_ylabel("largest singular value of ∂h(t)/∂h(t−k)\nmedian over sequences")
    for axes in every:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, _LEAST), min(high, _MOST))
        axes.axhline(1, color="#555555", linewidth=0.8)
        axes.set_xlabel("lag k (steps)")
        axes.grid(alpha=0.3)
    every[0].legend(frameon=False)


def _marked(count: int) -> list[int]:
    """About ten points of a curve that carry a marker."""
    return list(range(0, count, max(1, count // 10)))
