"""What is in the graphs: which variable enters which, and that unfolding copies it for each step."""

from __future__ import annotations

from pathlib import Path

import pytest

from throughtime.errors import UsageError
from throughtime.inspection.graph_pictures import draw_unfolding
from throughtime.inspection.unfolded_graph import DESIGNS, Graph, Node, recurrent_graph, unfolded_graph


def arrows(graph: Graph, label: str | None = None) -> set[tuple[str, str]]:
    """(source, target), each as "h2" for h at step 2."""

    def shown(node: Node) -> str:
        return node.name + ("" if node.step is None else graph.step_names[node.step])

    return {(shown(e.source), shown(e.target)) for e in graph.edges if label is None or e.label == label}


LOSS = {("o1", "L1"), ("o2", "L2"), ("o3", "L3"), ("y1", "L1"), ("y2", "L2"), ("y3", "L3")}
OUT = {("h1", "o1"), ("h2", "o2"), ("h3", "o3")}
READ = {("x1", "h1"), ("x2", "h2"), ("x3", "h3")}
REMEMBER = {("h1", "h2"), ("h2", "h3")}
FEED_BACK = {("y1", "h2"), ("y2", "h3")}


@pytest.mark.parametrize(
    ("design", "expected"),
    [
        ("hidden-recurrent", {"U": READ, "W": REMEMBER, "V": OUT, "": LOSS}),
        # Design B has no h → h: all that goes from one step to the next is the output.
        ("output-recurrent", {"U": READ, "W": {("o1", "h2"), ("o2", "h3")}, "V": OUT, "": LOSS}),
        ("sequence-summary", {"U": READ, "W": REMEMBER, "V": {("h3", "o3")}, "": {("o3", "L3"), ("y3", "L3")}}),
        # One context for all steps, which has no time of its own.
        (
            "context-to-sequence",
            {"R": {("x", "h1"), ("x", "h2"), ("x", "h3")}, "U": FEED_BACK, "W": REMEMBER, "V": OUT, "": LOSS},
        ),
        ("conditional-recurrent", {"U": READ, "R": FEED_BACK, "W": REMEMBER, "V": OUT, "": LOSS}),
        # y(0), the border, is known before the first step.
        ("language-model", {"U": FEED_BACK | {("y0", "h1")}, "W": REMEMBER, "V": OUT, "": LOSS}),
        (
            "bidirectional",
            {
                "U": READ,
                "W": REMEMBER,
                "V": OUT,
                "U'": {("x1", "g1"), ("x2", "g2"), ("x3", "g3")},
                "W'": {("g2", "g1"), ("g3", "g2")},
                "V'": {("g1", "o1"), ("g2", "o2"), ("g3", "o3")},
                "": LOSS,
            },
        ),
    ],
)
def test_a_design_unfolded_for_three_steps(design: str, expected: dict[str, set[tuple[str, str]]]) -> None:
    graph = unfolded_graph(design, 3)
    assert {edge.label for edge in graph.edges} == set(expected)
    for label, pairs in expected.items():
        assert arrows(graph, label) == pairs
    assert {edge.step for edge in graph.edges} == {1, 2, 3}
    assert all(edge.step == edge.target.step for edge in graph.edges)


@pytest.mark.parametrize("design", DESIGNS)
def test_unfolding_copies_each_arrow_for_each_step(design: str) -> None:
    steps = 4
    recurrent, unfolded = recurrent_graph(design), unfolded_graph(design, steps)
    given = {"language-model": "y"}.get(design)
    copies = [edge for one in recurrent.edges for edge in unfolded.edges if _is_copy(edge, one)]
    assert sorted(copies) == sorted(unfolded.edges)
    for one in recurrent.edges:
        found = [edge for edge in unfolded.edges if _is_copy(edge, one)]
        lost = abs(one.delay) if one.source.name != given or not one.delay else 0
        assert len(found) == (1 if one.at_end else steps - lost)
        assert all(edge.source.step is None or edge.step - edge.source.step == one.delay for edge in found)


def _is_copy(edge: object, one: object) -> bool:
    return all(
        get(edge) == get(one)
        for get in (lambda e: e.label, lambda e: e.source.name, lambda e: e.target.name, lambda e: e.delay)
    )


def test_the_recurrent_graph_has_every_variable_once() -> None:
    graph = recurrent_graph("hidden-recurrent")
    assert arrows(graph) == {("x", "h"), ("h", "h"), ("h", "o"), ("o", "L"), ("y", "L")}
    assert [(edge.label, edge.delay) for edge in graph.edges if edge.delay] == [("W", 1)]
    assert list(graph.positions) == [Node(name) for name in ("x", "h", "o", "L", "y")]


def test_layers_stand_above_each_other() -> None:
    graph = unfolded_graph("hidden-recurrent", 2, num_layers=3)
    assert arrows(graph, "U_1") == {("x1", "h_11"), ("x2", "h_12")}
    assert arrows(graph, "U_3") == {("h_21", "h_31"), ("h_22", "h_32")}
    assert arrows(graph, "W_2") == {("h_21", "h_22")}
    assert arrows(graph, "V") == {("h_31", "o1"), ("h_32", "o2")}
    heights = [graph.positions[Node(name, 1)][1] for name in ("x", "h_1", "h_2", "h_3", "o", "L", "y")]
    assert heights == sorted(set(heights))


def test_around_t_the_rest_is_hinted_at() -> None:
    graph = unfolded_graph("hidden-recurrent")
    assert arrows(graph, "W") == {("h...", "ht-1"), ("ht-1", "ht"), ("ht", "ht+1"), ("ht+1", "h...")}
    assert arrows(graph, "U") == {("xt-1", "ht-1"), ("xt", "ht"), ("xt+1", "ht+1")}
    assert [graph.hinted(node) for node in (Node("h", 0), Node("h", 1), Node("h", 4))] == [True, False, True]
    backward = unfolded_graph("bidirectional")
    assert {("g...", "gt+1"), ("gt-1", "g...")} <= arrows(backward, "W'")
    summary = unfolded_graph("sequence-summary")
    assert arrows(summary, "V") == {("hτ", "oτ")}
    assert {("ht", "h..."), ("h...", "hτ")} <= arrows(summary, "W")


@pytest.mark.parametrize("steps", [None, 1, 6])
@pytest.mark.parametrize("design", DESIGNS)
def test_no_two_variables_stand_in_one_place(design: str, steps: int | None) -> None:
    graph = unfolded_graph(design, steps)
    places = list(graph.positions.values())
    assert len(set(places)) == len(places)
    assert {end for edge in graph.edges for end in (edge.source, edge.target)} == set(graph.positions)
    assert min(x for x, _ in places) <= 0.4  # the drawing begins at its left edge
    for node, (x, _) in graph.positions.items():
        later = Node(node.name, None if node.step is None else node.step + 1)
        assert node.step is None or later not in graph.positions or graph.positions[later][0] > x


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("hiden-recurrent", 3, 1),
            "unfolded graph: no design 'hiden-recurrent'; did you mean hidden-recurrent? designs are "
            "hidden-recurrent, output-recurrent, sequence-summary, context-to-sequence, conditional-recurrent, "
            "language-model, bidirectional",
        ),
        (("hidden-recurrent", 0, 1), "unfolded graph: steps must be at least 1, got 0"),
        (("hidden-recurrent", 3, 0), "unfolded graph: num_layers must be at least 1, got 0"),
        (("bidirectional", 3, 2), "unfolded graph: the bidirectional design is drawn with one layer, got 2"),
    ],
)
def test_what_cannot_be_drawn(arguments: tuple[str, int, int], message: str) -> None:
    design, steps, num_layers = arguments
    with pytest.raises(UsageError) as caught:
        unfolded_graph(design, steps, num_layers=num_layers)
    assert str(caught.value) == message


# -- pictures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_a_picture_is_written_and_the_same_each_time(tmp_path: Path, suffix: str) -> None:
    graphs = recurrent_graph("conditional-recurrent"), unfolded_graph("conditional-recurrent", 2)
    gradients = {("U", 1): 0.5, ("U", 2): 1e-9, ("W", 2): 0.0, ("R", 2): 1.0, ("o", 1): 0.25}
    for name in ("first", "second"):
        draw_unfolding(*graphs, tmp_path / (name + suffix), gradients=gradients)
    first, second = ((tmp_path / (name + suffix)).read_bytes() for name in ("first", "second"))
    assert first == second
    assert first.startswith({".svg": b"<?xml", ".png": b"\x89PNG"}[suffix])


def test_a_picture_shows_what_the_graph_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its texts: names, letters and gradients; and its arrows, wider where the gradient is larger."""
    from throughtime.inspection import graph_pictures

    graphs = recurrent_graph("hidden-recurrent"), unfolded_graph("hidden-recurrent", 2)
    figure = graph_pictures._figure(*graphs, {("U", 1): 0.01, ("U", 2): 1.0, ("W", 2): 3.4e-5})
    axes = figure.axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert {"$h$", "$h^{(1)}$", "$y^{(2)}$", "unfold", "0.01", "3.4e-5"} <= set(texts)
    assert [texts.count(f"${letter}$") for letter in "UVW"] == [3, 3, 2]
    arrows = {patch.get_linewidth() for patch in axes.patches if type(patch).__name__ == "FancyArrowPatch"}
    assert {0.8, 5.0} <= arrows
    assert any(0.8 < width < 5.0 for width in arrows)


def test_another_kind_of_picture_is_refused(tmp_path: Path) -> None:
    graphs = recurrent_graph("hidden-recurrent"), unfolded_graph("hidden-recurrent", 2)
    with pytest.raises(UsageError) as caught:
        draw_unfolding(*graphs, "graph.pdf")
    assert str(caught.value) == "picture graph.pdf: expected a name that ends in .svg or .png, got '.pdf'"
