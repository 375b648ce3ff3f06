"""A design's recurrent graph, and the same graph unfolded over time: which variables there are, and what enters what.

A design is a list of arcs between the variables of one step. An arc with a delay goes from one step to the next. The
recurrent graph has each arc once; unfolding makes one copy of each arc for each step, and all copies of an arc with a
letter share that one matrix (section 10.1).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from throughtime.errors import UsageError

COLUMN_WIDTH = 2.2
ROW_HEIGHT = 1.4
# The steps that are only hinted at, as "...", in a graph around t.
_HINTED = "..."


class Node(NamedTuple):
    """A variable at one step; `step` is None where it has no time: in a recurrent graph, and a context's x."""

    name: str
    step: int | None = None


class Edge(NamedTuple):
    """An arrow: `label` is the matrix that it multiplies by ("" where there is none).

    `step` is the time of its target, which tells the copies of a matrix apart. `delay` is 1 where the source belongs to
    the step before the target's, and -1 where it belongs to the one after. `at_end`: it is there at the last step only.
    """

    label: str
    source: Node
    target: Node
    step: int | None = None
    delay: int = 0
    at_end: bool = False


@dataclass(frozen=True)
class Graph:
    """A graph to be drawn.

    Attributes:
        title: what it shows.
        positions: (x, y) of the centre of each node; time runs to the right, from input to loss goes up.
        edges: the arrows.
        step_names: what to call each step ("t-1", "3"); a step "..." is only hinted at.
    """

    title: str
    positions: dict[Node, tuple[float, float]]
    edges: tuple[Edge, ...]
    step_names: dict[int, str]

    def hinted(self, node: Node) -> bool:
        """Whether the node stands for steps that are not shown."""
        return node.step is not None and self.step_names[node.step] == _HINTED


class _Arc(NamedTuple):
    label: str
    source: str
    target: str
    delay: int = 0
    at_end: bool = False


class _Design(NamedTuple):
    title: str
    arcs: Callable[[list[str]], list[_Arc]]
    # Which variables have no time, which is known before the first step, and whether the only output is at τ.
    timeless: str = ""
    given: str = ""
    summary: bool = False


def _through_layers(h: list[str]) -> list[_Arc]:
    """From each layer to the next, of the same step."""
    return [_Arc(f"U_{k}", below, above) for k, (below, above) in enumerate(pairwise(h), start=2)]


def _through_time(h: list[str]) -> list[_Arc]:
    return [_Arc(_numbered("W", k, h), layer, layer, delay=1) for k, layer in enumerate(h, start=1)]


def _out(h: list[str], *, at_end: bool = False) -> list[_Arc]:
    arcs = [("V", h[-1], "o"), ("", "o", "L"), ("", "y", "L")]
    return [_Arc(*arc, at_end=at_end) for arc in arcs]


def _numbered(label: str, layer: int, h: list[str]) -> str:
    return label if len(h) == 1 else f"{label}_{layer}"


def _hidden_recurrent(h: list[str]) -> list[_Arc]:
    return [_Arc(_numbered("U", 1, h), "x", h[0]), *_through_layers(h), *_through_time(h), *_out(h)]


def _output_recurrent(h: list[str]) -> list[_Arc]:
    into = _Arc(_numbered("U", 1, h), "x", h[0])
    return [into, *_through_layers(h), _Arc("W", "o", h[0], delay=1), *_out(h)]


def _sequence_summary(h: list[str]) -> list[_Arc]:
    into = _Arc(_numbered("U", 1, h), "x", h[0])
    return [into, *_through_layers(h), *_through_time(h), *_out(h, at_end=True)]


def _context_to_sequence(h: list[str]) -> list[_Arc]:
    return [_Arc("R", "x", h[0]), *_language_model(h)]


def _conditional_recurrent(h: list[str]) -> list[_Arc]:
    return [*_hidden_recurrent(h), _Arc("R", "y", h[0], delay=1)]


def _language_model(h: list[str]) -> list[_Arc]:
    into = _Arc(_numbered("U", 1, h), "y", h[0], delay=1)
    return [into, *_through_layers(h), *_through_time(h), *_out(h)]


def _bidirectional(h: list[str]) -> list[_Arc]:
    if len(h) > 1:
        raise UsageError(f"unfolded graph: the bidirectional design is drawn with one layer, got {len(h)}")
    back = [_Arc("U'", "x", "g"), _Arc("W'", "g", "g", delay=-1), _Arc("V'", "g", "o")]
    return [_Arc("U", "x", "h"), _Arc("W", "h", "h", delay=1), *back, *_out(h)]


DESIGNS: dict[str, _Design] = {
    "hidden-recurrent": _Design("hidden to hidden: design A (fig. 10.3)", _hidden_recurrent),
    "output-recurrent": _Design("output to hidden: design B (fig. 10.4)", _output_recurrent),
    "sequence-summary": _Design("a sequence to one output: design C (fig. 10.5)", _sequence_summary, summary=True),
    "context-to-sequence": _Design("a vector to a sequence (fig. 10.9)", _context_to_sequence, timeless="x"),
    "conditional-recurrent": _Design("a sequence to a sequence, y(t-1) to h(t) (fig. 10.10)", _conditional_recurrent),
    "language-model": _Design("a language model: design A with x(t) = y(t-1)", _language_model, given="y"),
    "bidirectional": _Design("bidirectional (fig. 10.11)", _bidirectional),
}


def recurrent_graph(design: str, *, num_layers: int = 1) -> Graph:
    """The graph with each variable once; an arrow with a delay is a loop through time.

    Raises:
        UsageError: a design that there is none of, or a number of layers that it is not drawn with.

    Source: Goodfellow, Bengio & Courville 2016, section 10.1, left sides of figs. 10.2-10.5.
    """
    found, arcs = _arcs(design, num_layers)
    names = {name for arc in arcs for name in (arc.source, arc.target)}
    heights = _heights(names, num_layers)
    positions = {Node(name): _place(name, 0, heights) for name in heights}
    edges = tuple(Edge(arc.label, Node(arc.source), Node(arc.target), None, arc.delay, arc.at_end) for arc in arcs)
    return Graph(found.title, positions, edges, {})


def unfolded_graph(design: str, steps: int | None = None, *, num_layers: int = 1) -> Graph:
    """The graph with one copy of each variable, and of each arrow, for every step.

    With `steps` these are 1..τ. Without, they are t-1, t, t+1 as in the book, with a hint at what is before and after;
    of a design with one output at the end t-1, t and τ.

    Raises:
        UsageError: a design that there is none of, no step, or a number of layers that it is not drawn with.

    Source: Goodfellow, Bengio & Courville 2016, section 10.1, right sides of figs. 10.2-10.5; figs. 10.9-10.11.
    """
    found, arcs = _arcs(design, num_layers)
    if steps is not None and steps < 1:
        raise UsageError(f"unfolded graph: steps must be at least 1, got {steps}")
    names = _step_names(found, steps)
    last = max(step for step, name in names.items() if name != _HINTED)

    def node(name: str, step: int) -> Node:
        return Node(name, None if name == found.timeless else step)

    edges = []
    for arc in arcs:
        for step in names:
            before = step - arc.delay
            known = before in names or (before == 0 and arc.source == found.given)
            hinted = [names.get(one) == _HINTED for one in (step, before)]
            if known and not all(hinted) and (arc.delay or not any(hinted)) and (step == last or not arc.at_end):
                source, target = node(arc.source, before), node(arc.target, step)
                edges.append(Edge(arc.label, source, target, step, arc.delay, arc.at_end))
    heights = _heights({name for arc in arcs for name in (arc.source, arc.target)}, num_layers)
    ends = [end for edge in edges for end in (edge.source, edge.target)]
    steps_seen = [end.step for end in ends if end.step is not None]
    names = {step: names.get(step, str(step)) for step in range(min(steps_seen), max(steps_seen) + 1)}
    positions = {end: _place(end.name, end.step - min(names), heights) for end in ends if end.step is not None}
    if found.timeless:
        positions[Node(found.timeless)] = _below(len(names))
    return Graph(found.title, positions, tuple(edges), names)


def _arcs(design: str, num_layers: int) -> tuple[_Design, list[_Arc]]:
    """A design and its arcs.

    Raises:
        UsageError: there is none of that name, or less than one layer.
    """
    if design not in DESIGNS:
        nearest = difflib.get_close_matches(design, DESIGNS, n=1)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise UsageError(f"unfolded graph: no design {design!r}; {hint}designs are {', '.join(DESIGNS)}")
    if num_layers < 1:
        raise UsageError(f"unfolded graph: num_layers must be at least 1, got {num_layers}")
    h = ["h"] if num_layers == 1 else [f"h_{layer}" for layer in range(1, num_layers + 1)]
    found = DESIGNS[design]
    title = found.title if num_layers == 1 else f"{found.title}, {num_layers} layers"
    return found._replace(title=title), found.arcs(h)


def _step_names(design: _Design, steps: int | None) -> dict[int, str]:
    if steps is not None:
        return {step: str(step) for step in range(1, steps + 1)}
    shown = [_HINTED, "t-1", "t", _HINTED, "τ"] if design.summary else [_HINTED, "t-1", "t", "t+1", _HINTED]
    return dict(enumerate(shown))


def _heights(names: set[str], num_layers: int) -> dict[str, float]:
    """How high each variable stands: the inputs below, then the layers, the output, the loss, the target."""
    order = ["x", "h", *(f"h_{layer}" for layer in range(1, num_layers + 1)), "g", "o", "L", "y"]
    return {name: row * ROW_HEIGHT for row, name in enumerate(name for name in order if name in names)}


def _below(columns: int) -> tuple[float, float]:
    """(x, y) of what all steps see: below their middle, so low that no arrow from it meets another step's circle."""
    middle = (columns - 1) / 2
    return middle * COLUMN_WIDTH, ROW_HEIGHT - max(ROW_HEIGHT, 0.9 * middle)


def _place(name: str, column: float, heights: dict[str, float]) -> tuple[float, float]:
    """(x, y); of two directions one stands to the left and one to the right, so that no arrow crosses the other."""
    aside = {"h": -0.4, "g": 0.4}.get(name, 0.0) if "g" in heights else 0.0
    return column * COLUMN_WIDTH + aside, heights[name]
