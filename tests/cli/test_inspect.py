"""`throughtime inspect unfold`: pictures of designs and of runs, one line for mistakes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from throughtime.training.run_folder import RunFolder

Call = Callable[..., Any]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What was to be drawn: both graphs, the path, and the gradients."""
    from throughtime.inspection import graph_pictures

    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        graph_pictures,
        "draw_unfolding",
        lambda recurrent, unfolded, path, *, gradients: calls.append((recurrent, unfolded, path, gradients)),
    )
    return calls


def test_without_a_name_it_lists_what_there_is(call: Call) -> None:
    listed = call("inspect").out.partition("Commands:\n")[2].partition("\n\n")[0]
    assert "unfold" in re.findall(r"^  (\w+)", listed, re.MULTILINE)


@pytest.mark.parametrize("suffix", ["svg", "PNG"])
def test_a_design_is_drawn(call: Call, suffix: str) -> None:
    called = call("inspect", "unfold", "--design", "output-recurrent", "--steps", 2, "--out", f"made/graph.{suffix}")
    assert (called.code, called.out, called.err) == (0, "", f"drawn: made/graph.{suffix}\n")
    assert Path(f"made/graph.{suffix}").read_bytes()[:5] in (b"<?xml", b"\x89PNG\r")


def test_the_options_reach_the_graphs(call: Call, drawn: list[Any]) -> None:
    line = ("inspect", "unfold", "--design", "hidden-recurrent", "--out")
    assert call(*line, "a.svg", "--steps", 3, "--layers", 2).code == 0
    assert call(*line, "b.svg").code == 0
    (recurrent, unfolded, path, gradients), (plain, around_t, *_) = drawn
    assert {edge.label for edge in recurrent.edges} == {"U_1", "U_2", "W_1", "W_2", "V", ""}
    assert list(unfolded.step_names.values()) == ["1", "2", "3"]
    assert (path, gradients) == (Path("a.svg"), None)
    assert {edge.label for edge in plain.edges} == {"U", "W", "V", ""}
    assert list(around_t.step_names.values()) == ["...", "t-1", "t", "t+1", "..."]


def test_a_run_is_drawn_with_its_gradients(call: Call, tiny_run: Path, drawn: list[Any]) -> None:
    Path("text.txt").write_text("How the gradient flows, " * 100)
    assert call("inspect", "unfold", tiny_run, "--data", "text.txt", "--steps", 4, "--out", "run.svg").code == 0
    (recurrent, unfolded, _, gradients) = drawn[0]
    assert "language model" in recurrent.title
    keys = {(edge.label, edge.step) for edge in unfolded.edges if edge.label}
    assert keys == {(label, step) for label in "UVW" for step in range(1, 5)} - {("W", 1)}
    assert all(gradients[key] > 0 for key in keys)


@pytest.fixture
def run_on(tiny_run: Path) -> Callable[[str], Path]:
    """A run whose configuration names this text."""

    def make(path: str) -> Path:
        shutil.copytree(tiny_run, "r")
        config = Path("r/config.toml")
        text, count = re.subn(r"(?m)^paths = .*$", f'paths = ["{path}"]', config.read_text("utf-8"))
        assert count == 1
        config.write_text(text, "utf-8")
        return Path("r")

    return make


def test_a_runs_own_text_is_taken_where_none_is_given(
    call: Call, run_on: Callable[[str], Path], drawn: list[Any]
) -> None:
    Path("text.txt").write_text("How the gradient flows.\n" * 200)
    assert call("inspect", "unfold", run_on("text.txt"), "--out", "run.svg").code == 0
    (_, unfolded, _, gradients) = drawn[0]
    assert max(unfolded.step_names) == 5
    assert gradients["V", 5] > 0


def test_a_short_text_gives_fewer_sequences(call: Call, tiny_run: Path, drawn: list[Any]) -> None:
    Path("text.txt").write_text("Hello")
    assert call("inspect", "unfold", tiny_run, "--data", "text.txt", "--steps", 4, "--out", "run.svg").code == 0
    assert drawn[0][3]["V", 4] > 0
    called = call("inspect", "unfold", tiny_run, "--data", "text.txt", "--steps", 40, "--out", "run.svg")
    assert called.code == 2
    assert re.search(
        r"edge gradients: 40 steps need a text of 41 tokens, got \d; take fewer steps or a longer text\n$", called.err
    )


def test_a_run_on_standard_input_needs_a_text(call: Call, run_on: Callable[[str], Path]) -> None:
    called = call("inspect", "unfold", run_on("-"), "--out", "run.svg")
    assert called.code == 2
    assert called.err.endswith("run folder r: its text came from the standard input; name one with --data\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "--design output-recurent --out a.svg",
            "unfolded graph: no design 'output-recurent'; did you mean output-recurrent? designs are ",
        ),
        (
            "--design hidden-recurrent --out a.jpg",
            "picture a.jpg: expected a name that ends in .svg or .png, got '.jpg'",
        ),
        ("--design hidden-recurrent --out a", "picture a: expected a name that ends in .svg or .png, got ''"),
        ("--out a.svg", "inspect unfold: expected a run folder or a --design, got neither; designs are "),
        ("r --design hidden-recurrent --out a.svg", "inspect unfold: expected a run folder or a --design, got both; "),
        ("r --layers 2 --out a.svg", "inspect unfold: --layers is for a --design; a run has its own number of them"),
        (
            "--design hidden-recurrent --data x --out a.svg",
            "inspect unfold: --data is for a run folder; a --design alone has no gradients",
        ),
        ("--design hidden-recurrent --steps 0 --out a.svg", "unfolded graph: steps must be at least 1, got 0"),
        (
            "--design bidirectional --layers 2 --out a.svg",
            "unfolded graph: the bidirectional design is drawn with one ",
        ),
        ("nowhere --out a.svg", "run folder nowhere: "),
        ("--design hidden-recurrent", "missing option '--out'; see throughtime inspect unfold --help"),
    ],
)
def test_a_mistake_is_told_in_one_line(call: Call, line: str, message: str) -> None:
    called = call("inspect", "unfold", *line.split())
    assert called.code == 2
    assert called.out == ""
    assert called.err.startswith(f"throughtime: error: {message}")
    assert called.err.count("\n") == 1
    assert not list(Path().glob("a*"))


@pytest.mark.parametrize("line", ["unfold r --out a.svg", "flow r"])
def test_a_run_of_pairs_is_for_another_command(call: Call, line: str) -> None:
    RunFolder.create("r", "transduce")
    told = f"inspect {line.split()[0]}: expected a run of a language model or a design, got r, a model of pairs"
    assert call("inspect", *line.split()) == (
        2, "", f"throughtime: error: {told}; use throughtime inspect attention r --input TEXT\n"
    )  # fmt: skip


def test_a_picture_that_cannot_be_written(call: Call) -> None:
    Path("file").write_text("")
    called = call("inspect", "unfold", "--design", "hidden-recurrent", "--out", "file/graph.svg")
    assert called.code == 1
    assert called.err.startswith("throughtime: error: cannot write file/graph.svg: ")
    assert called.err.count("\n") == 1
