"""Graphs as pictures: the recurrent graph on the left, the unfolded one on the right, as SVG or PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from throughtime.errors import UsageError
from throughtime.inspection.figures import write_figure
from throughtime.inspection.unfolded_graph import COLUMN_WIDTH, ROW_HEIGHT, Edge, Graph, Node

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

FORMATS = (".svg", ".png")
_RADIUS = 0.4
_INK = "#202020"
_FAINT = "#8a8a8a"
_INCHES_PER_UNIT = 0.62
_LETTER = 0.24
_LEAST_WIDTH, _MOST_WIDTH = 0.8, 5.0
# Gradients below the largest by more than this many powers of ten look alike.
_DECADES = 6.0

_ARROW: dict[str, Any] = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0}
_PLAIN: dict[str, Any] = {"color": _INK, "linewidth": 1.2}

Gradients = Mapping[tuple[str, int], float]
Place = tuple[float, float]


def check_picture(path: str | Path) -> Path:
    """The path of a picture that can be written.

    Raises:
        UsageError: its suffix is neither .svg nor .png.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"picture {path}: expected a name that ends in {' or '.join(FORMATS)}, got {path.suffix!r}")
    return path


def draw_unfolding(recurrent: Graph, unfolded: Graph, path: str | Path, *, gradients: Gradients | None = None) -> None:
    """Draw both graphs side by side to `path`, whose suffix is .svg or .png.

    `gradients` are norms by (label, step) of an edge; under the label "o" stand those of the unlabelled edges from o to
    L. Each edge that has one gets its number, and a width and a darkness that grow with its logarithm, so that a grey
    print stays legible.

    Raises:
        UsageError: another suffix.
        StorageError: the disk is full, read-only or gone.
    """
    path = check_picture(path)
    write_figure(_figure(recurrent, unfolded, gradients), path)


def _figure(recurrent: Graph, unfolded: Graph, gradients: Gradients | None) -> Figure:
    # The object interface, not pyplot: no backend is chosen for the user's own program.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scale = _Scale(gradients) if gradients else None
    offset = 4.6  # of the unfolded graph, in the units of the positions
    right = offset + max(x for x, _ in unfolded.positions.values()) + 1.3
    top = max(y for _, y in unfolded.positions.values()) + 1.3
    left = min(x for x, _ in recurrent.positions.values()) - 1.9
    bottom = min(y for _, y in unfolded.positions.values()) - (1.9 if scale else 1.2)
    figure = Figure(figsize=((right - left) * _INCHES_PER_UNIT, (top - bottom) * _INCHES_PER_UNIT), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    axes.axis("off")
    axes.text((left + right) / 2, top - 0.45, recurrent.title, ha="center", va="center", fontsize=12)
    _draw_loops(axes, recurrent)
    _draw_between(axes, offset, recurrent)
    _draw_unfolded(axes, unfolded, offset, scale)
    if scale:
        scale.draw_legend(axes, (left + right) / 2, bottom + 0.5)
    return figure


class _Scale:
    """From a gradient's norm to the look of its edge."""

    def __init__(self, gradients: Gradients) -> None:
        self.norms = dict(gradients)
        found = [norm for norm in self.norms.values() if norm > 0]
        self.largest = max(found, default=1.0)
        self.least = max(min(found, default=1.0), self.largest / 10**_DECADES)

    def share(self, norm: float) -> float:
        """0 for the least, 1 for the largest, on a logarithmic scale."""
        if norm <= self.least:
            return 0.0 if self.largest > self.least or norm < self.least else 1.0
        return math.log(norm / self.least) / math.log(self.largest / self.least)

    @staticmethod
    def colours() -> Colormap:
        """From light to dark, so that it keeps its order in grey."""
        from matplotlib import colormaps
        from matplotlib.colors import ListedColormap

        return ListedColormap(colormaps["YlOrRd"]([0.25 + 0.75 * step / 255 for step in range(256)]))

    def look(self, edge: Edge) -> tuple[float | None, dict[str, Any]]:
        """The norm on an edge, and how to draw it."""
        key = (edge.label or edge.source.name, edge.step or 0)
        if key not in self.norms:
            return None, {"color": _FAINT, "linewidth": _LEAST_WIDTH}
        share = self.share(self.norms[key])
        width = _LEAST_WIDTH + share * (_MOST_WIDTH - _LEAST_WIDTH)
        return self.norms[key], {"color": self.colours()(share), "linewidth": width}

    def draw_legend(self, axes: Axes, x: float, y: float) -> None:
        """A bar from the least to the largest, with what is measured."""
        length, parts = 4.0, 64
        for part in range(parts):
            share = part / (parts - 1)
            start = x - length / 2 + length * part / parts
            width = 1.5 * (_LEAST_WIDTH + share * (_MOST_WIDTH - _LEAST_WIDTH))
            end = start + 1.3 * length / parts
            axes.plot([start, end], [y, y], color=self.colours()(share), linewidth=width, solid_capstyle="butt")
        axes.text(x - length / 2 - 0.15, y, _short(self.least), ha="right", va="center", fontsize=8)
        axes.text(x + length / 2 + 0.2, y, _short(self.largest), ha="left", va="center", fontsize=8)
        said = (
            r"$\Vert\partial L/\partial M^{(t)}\Vert$ for each step's own copy of each matrix $M$; "
            r"from $o$ to $L$ $\Vert\partial L/\partial o^{(t)}\Vert$"
        )
        axes.text(x, y - 0.4, said, ha="center", va="center", fontsize=8)


# -- the two graphs ----------------------------------------------------------------------------------------------------


def _draw_unfolded(axes: Axes, graph: Graph, offset: float, scale: _Scale | None) -> None:
    places = {node: (x + offset, y) for node, (x, y) in graph.positions.items()}
    # Curves from above cross the arrows between steps on the right of their middle.
    curves = any(edge.source.name == "y" and edge.delay for edge in graph.edges)
    for edge in graph.edges:
        start, end = places[edge.source], places[edge.target]
        norm, look = scale.look(edge) if scale else (None, dict(_PLAIN))
        if graph.hinted(edge.source) or graph.hinted(edge.target):
            look["linestyle"] = (0, (4, 3))
        # From above, around what stands between: down the gap between two columns.
        around = edge.source.name == "y" and edge.delay != 0
        at = _draw_curve(axes, start, end, look) if around else _draw_line(axes, start, end, look)
        if not around and edge.delay and curves:
            at = (at[0] - _LETTER * 0.75, at[1])
        _draw_label(axes, edge, at, norm, start, end)
    for node, place in places.items():
        _draw_node(axes, node, graph, place)


def _draw_loops(axes: Axes, graph: Graph) -> None:
    """The recurrent graph: what is delayed by a step is a loop through a square."""
    for edge in graph.edges:
        start, end = graph.positions[edge.source], graph.positions[edge.target]
        if edge.delay:
            _draw_delay(axes, edge, start, end)
            continue
        at = _draw_line(axes, start, end, dict(_PLAIN))
        _draw_label(axes, edge, at, None, start, end)
        if edge.at_end and edge.label:
            axes.text(at[0] + 0.45, at[1], r"at $t=\tau$ only", ha="left", va="center", fontsize=8)
    for node, place in graph.positions.items():
        _draw_node(axes, node, graph, place)


def _draw_between(axes: Axes, offset: float, graph: Graph) -> None:
    """The arrow that says "unfold", and what the squares mean."""
    from matplotlib.patches import FancyArrowPatch

    y = _middle(graph)
    start, end = offset - 2.35, offset - 1.05
    axes.add_patch(FancyArrowPatch((start, y), (end, y), arrowstyle="-|>", mutation_scale=18, linewidth=2, color=_INK))
    axes.text((start + end) / 2, y + 0.3, "unfold", ha="center", va="bottom", fontsize=10)
    delays = {edge.delay for edge in graph.edges}
    said = [text for delay, text in ((1, "■ one step later"), (-1, "□ one step before")) if delay in delays]
    x = min(x for x, _ in graph.positions.values()) - 1.6
    axes.text(x, min(y for _, y in graph.positions.values()) - 0.8, "   ".join(said), va="center", fontsize=8)


def _middle(graph: Graph) -> float:
    heights = [y for _, y in graph.positions.values()]
    return (min(heights) + max(heights)) / 2


# -- strokes -----------------------------------------------------------------------------------------------------------


def _draw_node(axes: Axes, node: Node, graph: Graph, place: Place) -> None:
    from matplotlib.patches import Circle

    hinted = graph.hinted(node)
    style = {"linestyle": (0, (4, 3)), "edgecolor": _FAINT} if hinted else {"edgecolor": _INK}
    axes.add_patch(Circle(place, _RADIUS, facecolor="white", linewidth=1.2, zorder=3, **style))
    name, _, layer = node.name.partition("_")
    time = "" if node.step is None else f"^{{({_as_mathematics(graph.step_names[node.step])})}}"
    below = f"_{{{layer}}}" if layer else ""
    size = 9.5 if "{" in time[2:] or below else 11
    axes.text(*place, f"${name}{below}{time}$", ha="center", va="center", fontsize=size, zorder=4)


def _as_mathematics(step: str) -> str:
    """A step's name without the wide space that TeX puts around signs."""
    for plain, set_tight in (("-", "{-}"), ("+", "{+}"), ("...", r"{\ldots}"), ("τ", r"\tau")):
        step = step.replace(plain, set_tight)
    return step


def _draw_line(axes: Axes, start: Place, end: Place, look: dict[str, Any]) -> Place:
    """A straight arrow from circle to circle; where its label goes."""
    from matplotlib.patches import FancyArrowPatch

    along, length = _direction(start, end)
    tail = (start[0] + _RADIUS * along[0], start[1] + _RADIUS * along[1])
    head = (end[0] - _RADIUS * along[0], end[1] - _RADIUS * along[1])
    axes.add_patch(FancyArrowPatch(tail, head, **_ARROW, mutation_scale=_head(look), **look))
    share = 0.5
    if _fans_out(start, end):
        share = 0.62  # where there is room between one arrow and the next
    elif along[1] > 0 and length > 1.5 * ROW_HEIGHT:
        # Two rows up, the middle belongs to what stands there: the label goes to the half nearer to the column.
        share = 0.7 if end[0] > start[0] else 0.3
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


def _fans_out(start: Place, end: Place) -> bool:
    """Whether an arrow goes from one column up to another, as from a context to each step."""
    return end[1] > start[1] and abs(end[0] - start[0]) > 0.4 * COLUMN_WIDTH


def _draw_curve(axes: Axes, start: Place, end: Place, look: dict[str, Any]) -> Place:
    """An arrow from the top of one column down through the gap, to the left of a node of the next."""
    from matplotlib.patches import FancyArrowPatch

    gap = (start[0] + end[0]) / 2
    tail, head = _rim(start, -10), _rim(end, 135)
    path = _bezier(tail, (gap + 0.1, start[1] - 0.1), (gap - 0.3, end[1] + 1.3), head)
    axes.add_patch(FancyArrowPatch(path=path, **_ARROW, mutation_scale=_head(look), **look))
    return _on_bezier(path.vertices, 0.45)


def _draw_delay(axes: Axes, edge: Edge, start: Place, end: Place) -> None:
    """An arrow that leaves on one side, goes through the square of the delay, and comes back."""
    from matplotlib.patches import FancyArrowPatch, Rectangle

    # A node's own loop stands to its left (of two nodes, to the outer side), every other loop to the right.
    side = -1 if edge.source == edge.target and start[0] <= 0 else 1
    if edge.source == edge.target:
        leave, arrive = (40, -40) if side > 0 else (140, 220)
        reach, rise = 1.5 * side, 0.55
        tail, head = _rim(start, leave), _rim(end, arrive)
        controls = (start[0] + reach, start[1] + rise), (end[0] + reach, end[1] - rise)
    else:
        tail, head = _rim(start, -15), _rim(end, 30)
        controls = (start[0] + 1.7, start[1] - 0.2), (end[0] + 1.7, end[1] + 0.5)
    path = _bezier(tail, *controls, head)
    axes.add_patch(FancyArrowPatch(path=path, **_ARROW, mutation_scale=_head(_PLAIN), **_PLAIN))
    x, y = _on_bezier(path.vertices, 0.5)
    size = 0.2
    fill = _INK if edge.delay > 0 else "white"
    square = Rectangle((x - size / 2, y - size / 2), size, size, facecolor=fill, edgecolor=_INK, zorder=3)
    axes.add_patch(square)
    axes.text(x + 0.3 * side, y, _shown(edge.label), ha="center", va="center", fontsize=10)


def _draw_label(axes: Axes, edge: Edge, at: Place, norm: float | None, start: Place, end: Place) -> None:
    """The letter of the matrix beside the arrow, and the gradient in small print."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.85}
    number = "" if norm is None else _short(norm)
    if _fans_out(start, end):
        both = f"{_shown(edge.label)} {number}".strip()
        axes.text(*at, both, ha="center", va="center", fontsize=8 if number else 10, bbox=box, zorder=5)
        return
    if abs(start[0] - end[0]) >= COLUMN_WIDTH / 2 and edge.source.name != "y":
        axes.text(at[0], at[1] + 0.12, _shown(edge.label), ha="center", va="bottom", fontsize=10, bbox=box, zorder=5)
        axes.text(at[0], at[1] - 0.14, number, ha="center", va="top", fontsize=6.5, bbox=box, zorder=5)
        return
    # Of two directions, the one that stands on the left has its letters on the left.
    leans_left = abs(start[0] - end[0]) > 0 and "h" in (edge.source.name, edge.target.name) and edge.source.name != "y"
    side, align = (-1, "right") if leans_left else (1, "left")
    x = at[0] + (0.13 if norm is None else 0.2) * side
    axes.text(x, at[1], _shown(edge.label), ha=align, va="center", fontsize=10, bbox=box, zorder=5)
    curved = edge.source.name == "y"
    x, y = (x, at[1] - 0.26) if curved else (x + _LETTER * len(edge.label.replace("_", "")), at[1] - 0.03)
    axes.text(x, y, number, ha=align, va="center", fontsize=6.5, bbox=box, zorder=5)


def _shown(label: str) -> str:
    """A label as mathematics."""
    return f"${label}$" if label else ""


def _short(norm: float) -> str:
    """Two digits: 0.12, 3.4e-5."""
    return f"{norm:.2g}" if norm == 0 or 1e-3 <= norm < 1e3 else f"{norm:.1e}".replace("e-0", "e-").replace("e+0", "e")


def _head(look: Mapping[str, Any]) -> float:
    """The size of an arrow's head, which grows with its line."""
    return 9 + 2.0 * float(look["linewidth"])


def _direction(start: Place, end: Place) -> tuple[Place, float]:
    length = math.dist(start, end)
    return ((end[0] - start[0]) / length, (end[1] - start[1]) / length), length


def _rim(centre: Place, degrees: float) -> Place:
    """The point of a node's circle in that direction."""
    return (
        centre[0] + _RADIUS * math.cos(math.radians(degrees)),
        centre[1] + _RADIUS * math.sin(math.radians(degrees)),
    )


def _bezier(*points: Place) -> Any:
    from matplotlib.path import Path as Curve

    return Curve(points, [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4])


def _on_bezier(points: Any, share: float) -> Place:
    """The point of a cubic curve at a share of its parameter."""
    rest = 1 - share
    weights = (rest**3, 3 * rest**2 * share, 3 * rest * share**2, share**3)
    x, y = (float(sum(w * point[axis] for w, point in zip(weights, points, strict=True))) for axis in (0, 1))
    return x, y
