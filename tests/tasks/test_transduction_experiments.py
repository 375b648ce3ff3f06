"""Encoder-decoders side by side: groups by length make up the whole, widths agree with `evaluate`, strings as said."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from throughtime.data.pairs import TextsSource, read_pairs
from throughtime.data.tokenizers import Tokenizer
from throughtime.errors import UsageError
from throughtime.tasks import transduce
from throughtime.tasks.experiments import transduction, transduction_command, transduction_strings, transduction_widths
from throughtime.tasks.experiments.transduction import FIGURES, Files, Group, Row, by_length
from throughtime.tasks.experiments.transduction_report import aligned, lengths, medians
from throughtime.tasks.pair_metrics import Judged, measured

SETTINGS = (
    "model.hidden_size=16", "model.embedding_size=8", "training.batch_size=16", "training.learning_rate=0.02",
    "training.max_steps=8", "training.evaluate_every=4", "training.evaluate_sources=0", "training.precision=fp32",
    "training.device=cpu", "generation.max_length=12",
)  # fmt: skip
LETTERS = Tokenizer.train("chars", TextsSource(["abc"], "letters"))
TEXTS = st.text("abc", min_size=1, max_size=6)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -- groups ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 12), TEXTS, TEXTS), min_size=1), st.sets(st.integers(2, 12), max_size=4))
def test_groups_by_length_make_up_the_whole(found: list[tuple[int, str, str]], higher: set[int]) -> None:
    bounds = [1, *sorted(higher)]
    answers = [(length, Judged(answer, (reference,))) for length, answer, reference in found]
    groups = by_length(answers, bounds, LETTERS)
    whole = measured(FIGURES, [judged for _, judged in answers], LETTERS)
    assert sum(group.sources for group in groups) == len(found)
    right = sum(group.sources * group.exact_match for group in groups)
    assert right == pytest.approx(len(found) * whole["exact_match"])
    inside = [
        [(length, reference) for length, _, reference in found if group.least <= length <= group.most]
        for group in groups
    ]
    tokens = [sum(len(reference) for _, reference in members) for members in inside]
    edits = sum(count * group.token_error_rate for count, group in zip(tokens, groups, strict=True))
    assert edits == pytest.approx(sum(tokens) * whole["token_error_rate"])
    written = sum(count * group.written for count, group in zip(tokens, groups, strict=True))
    assert written == pytest.approx(sum(len(answer) for _, answer, _ in found))
    for group, members in zip(groups, inside, strict=True):
        assert group.sources == len(members)
        below = [bound for bound in bounds if bound <= group.most]
        assert below == [bound for bound in bounds if bound <= group.least]  # one group holds no bound of another


def test_a_group_is_its_members_figures() -> None:
    answers = [(1, Judged("ab", ("ab",))), (3, Judged("a", ("abc", "cb"))), (4, Judged("abc", ("b", "abc")))]
    assert by_length(answers, [1, 2, 3], LETTERS) == [
        Group(1, 1, 1, 1.0, 0.0, 1.0),
        Group(3, 4, 2, 0.5, pytest.approx(2 / 6), 4 / 4),  # type: ignore[arg-type]
    ]


def test_bounds_rise_and_begin_below_every_source() -> None:
    answers = [(2, Judged("a", ("a",)))]
    with pytest.raises(UsageError, match=r"^by_length: bounds must rise, got \[1, 5, 5\]; give the least length"):
        by_length(answers, [1, 5, 5], LETTERS)
    with pytest.raises(UsageError, match=r"^by_length: expected sources of at least 3 tokens, the first bound, got one "
                                         r"of 2; begin with a lower bound$"):  # fmt: skip
        by_length(answers, [3], LETTERS)


# -- strings -----------------------------------------------------------------------------------------------------------


def pairs_of(path: Path) -> list[tuple[str, str]]:
    return [(pair.source, pair.target) for pair in read_pairs([path])]


def test_strings_are_reversed_or_copied_and_those_of_the_test_go_on_beyond_training(tmp_path: Path) -> None:
    sizes = {"pairs": 300, "trained_to": 12, "tested_to": 17, "each": 3}
    found = {task: transduction_strings.write(tmp_path / task, task, **sizes) for task in ("reversal", "copying")}
    for source, target in pairs_of(found["reversal"].train):
        assert target == "".join(reversed(source))
    assert all(source == target for source, target in pairs_of(found["copying"].test))
    train, test = ([source for source, _ in pairs_of(path)] for path in (found["copying"].train, found["copying"].test))
    assert len(train) == 300
    assert {len(source) for source in train} == set(range(1, 13))
    assert Counter(map(len, test)) == dict.fromkeys(range(1, 18), 3)
    # Longer strings come once, here and in the test.
    long = [source for source in train + test if len(source) > 6]
    assert len(long) == len(set(long))
    valid = [source for source, _ in pairs_of(found["copying"].valid)]
    assert len(valid) == 500
    assert max(map(len, valid)) == 12
    assert {letter for source in valid for letter in source} == set("abcdefghijklmnopqrstuvwxyz")


def test_the_same_strings_are_written_again(tmp_path: Path) -> None:
    one, other = (
        transduction_strings.write(tmp_path / name, "copying", pairs=50, trained_to=5, tested_to=6, each=2)
        for name in "ab"
    )
    assert [path.read_text() for path in one] == [path.read_text() for path in other]


def test_strings_need_a_task_and_lengths_beyond_training(tmp_path: Path) -> None:
    sizes = {"pairs": 5, "each": 1}
    with pytest.raises(UsageError, match=r"^strings: task must be one of reversal, copying, got 'sorting'$"):
        transduction_strings.write(tmp_path, "sorting", trained_to=2, tested_to=3, **sizes)
    with pytest.raises(UsageError, match=r"^strings: expected 1 <= trained_to < tested_to, got 3 and 3; test longer"):
        transduction_strings.write(tmp_path, "copying", trained_to=3, tested_to=3, **sizes)


# -- models side by side -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("strings")
    return transduction_strings.write(folder, "copying", pairs=960, trained_to=4, tested_to=7, each=10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


MODELS = {"with it": ["model.attention=dot"], "fixed context": ["model.attention=none"]}


@pytest.fixture(scope="module")
def rows(files: Files, folder: Path) -> list[Row]:
    torch.set_num_threads(1)
    return transduction.run(
        MODELS, files, folder, bounds=[1, 3, 5], settings=SETTINGS, max_length=12, seeds=[0, 1]
    )  # fmt: skip


def test_each_model_is_trained_with_each_seed_and_judged_as_evaluate_does(
    rows: list[Row], files: Files, folder: Path
) -> None:
    assert [(row.name, row.seed) for row in rows] == [(name, seed) for seed in (0, 1) for name in MODELS]
    assert sorted(path.name for path in folder.iterdir()) == [
        "fixed-context-0", "fixed-context-1", "with-it-0", "with-it-1",
    ]  # fmt: skip
    for row in rows:
        again = transduce.evaluate(
            folder / f"{row.name.replace(' ', '-')}-{row.seed}", [str(files.test)], beam=1, max_length=12
        )
        assert row.figures == {name: again[name] for name in ("loss", *FIGURES)}
        assert sum(group.sources for group in row.groups) == again["sources"]
        right = sum(group.sources * group.exact_match for group in row.groups)
        assert right == pytest.approx(again["sources"] * again["exact_match"])
        assert [(group.least, group.most) for group in row.groups] == [(1, 2), (3, 4), (5, 7)]
        assert (row.steps, row.best_step in (4, 8)) == (8, True)
    # The model of attention has the matrix W more that makes h̃ of the context and h.
    assert rows[0].parameters - rows[1].parameters == 2 * 16 * 16
    assert rows[0].figures != rows[2].figures


def test_what_has_ended_is_judged_again_and_not_trained(rows: list[Row], files: Files, folder: Path) -> None:
    keys = {"bounds": [1, 3, 5], "settings": SETTINGS, "max_length": 12, "resume": True}
    seen: list[Row] = []
    model = {"with it": MODELS["with it"]}
    assert transduction.run(model, files, folder, report=seen.append, **keys) == [rows[0]] == seen  # type: ignore[arg-type]


def test_tables_hold_medians_of_the_seeds() -> None:
    rows = [
        Row("a", seed, 1, 2, 2, 1.0, {}, (Group(1, 3, 5, right, 0.5, 1.0), Group(4, 4, 5, 0.0, 1.0, 0.5)))
        for seed, right in enumerate((0.1, 0.8, 0.3))
    ]
    assert medians(rows, "exact_match") == {"a": [0.3, 0.0]}
    assert lengths(rows, "exact_match").splitlines() == [
        "| answers exactly right, %; letters |  1–3 |   4 |",
        "| --------------------------------- | ---: | --: |",
        "| a                                 | 30.0 | 0.0 |",
    ]


def test_the_command_writes_tables_a_picture_and_all_figures(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = transduction_command.parser("Models.", MODELS, steps=4, hidden_size=4, batch_size=8)
    chosen = options.parse_args(["--run", str(tmp_path / "run"), "--models", "fixed context"])
    keys: dict[str, Any] = {"bounds": [1, 5], "max_length": 8, "trained_to": 4}
    transduction_command.compare(chosen, MODELS, {"copying": lambda: files}, **keys)
    printed = capsys.readouterr()
    assert "copying: fixed context, seed 0: exact match" in printed.err
    tables = [line.split(" | ") for line in printed.out.splitlines() if line.startswith("|")]
    assert [len(line) for line in tables] == [8, 8, 8, *[3] * 9]
    assert (tmp_path / "run" / "lengths.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((tmp_path / "run" / "results.json").read_text("utf-8"))
    (row,) = results["tasks"]["copying"]
    assert "training.max_steps=4" in results["settings"]["common"]
    assert results["settings"]["models"] == {"fixed context": ["model.attention=none"]}
    assert [(group["least"], group["most"]) for group in row["groups"]] == [(1, 4), (5, 7)]
    # Once more without --resume: the run is there.
    with pytest.raises(SystemExit, match="2"):
        transduction_command.compare(chosen, MODELS, {"copying": lambda: files}, **keys)
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: run folder")


# -- widths ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def decided(rows: list[Row], folder: Path, tmp_path: Path) -> Path:
    """A run of random weights, which is sure of itself and wrong: greedy search and beams answer differently."""
    run = tmp_path / "decided"
    shutil.copytree(folder / "with-it-0", run)
    model, generator = transduce.load(run)[0], torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 1.0, generator=generator)
        model.readout.bias_ho[model.config.border_id] = -6.0  # or most answers are empty
    model.save(run)
    return run


def test_widths_agree_with_evaluate_and_with_each_other(
    decided: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transduction_widths, "_BLOCK", 25)
    run, data = decided, [str(files.test)]
    widths = transduction_widths.compare(run, data, [4, 1, 2])
    assert [one.width for one in widths] == [1, 2, 4]
    greedy = widths[0]
    for one in widths:
        again = transduce.evaluate(run, data, beam=one.width)
        assert (one.exact_match, one.token_error_rate) == (again["exact_match"], again["token_error_rate"])
        answers = transduce.transducer(run, beam=one.width).answer([pair.source for pair in _distinct(files.test)])
        scores = [answer.answers[0].score for answer in answers]
        assert one.score == pytest.approx(sum(scores) / len(scores), abs=1e-4)
        assert one.repaired - one.spoilt == round(again["sources"] * (one.exact_match - greedy.exact_match))
        assert one.sentences_per_second * one.seconds == pytest.approx(again["sources"])
        assert one.time == pytest.approx(one.seconds / greedy.seconds)
    assert (greedy.time, greedy.repaired, greedy.spoilt, greedy.search_errors, greedy.lower) == (1.0, 0, 0, 0, 0)
    assert widths[2].search_errors > widths[2].lower
    assert widths[2].score > greedy.score


def _distinct(path: Path) -> list[Any]:
    return list({pair.source: pair for pair in read_pairs([path])}.values())


def test_errors_and_repairs_are_counted_source_by_source() -> None:
    greedy = transduction_widths.Found([], [-1.0, -2.0, -3.0, -1.0], [True, False, False, True], 2.0)
    judged = [Judged("a", ("a",)), Judged("a", ("a",)), Judged("b", ("a",)), Judged("b", ("a",))]
    beam = transduction_widths.Found(judged, [-1.0, -1.5, -3.5, -1.0 + 1e-5], [True, True, False, False], 3.0)
    transducer: Any = type("", (), {"tokenizers": type("", (), {"target": LETTERS})})
    found = transduction_widths._compared(5, beam, greedy, transducer)
    assert found == transduction_widths.Width(
        5, exact_match=0.5, token_error_rate=0.5, score=sum(beam.scores) / 4, seconds=3.0,
        sentences_per_second=4 / 3, time=1.5, repaired=1, spoilt=1, search_errors=1, lower=1,
    )  # fmt: skip
    assert transduction_widths.table([found]).splitlines()[-1].split() == [
        "|", "5", "|", "50.00", "|", "50.00", "|", "-1.7500", "|", "1", "|", "1.50", "|", "1", "|", "1", "|", "1", "|",
        "1", "|",
    ]  # fmt: skip


def test_widths_are_compared_with_greedy(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"^widths: expected 1, greedy search, among them, got \[2, 5\]; add 1$"):
        transduction_widths.compare(folder, ["unread.tsv"], [2, 5])


def test_a_table_is_aligned() -> None:
    assert aligned([["a", "b"], ["long", "10"]]).splitlines() == [
        "| a    |  b |",
        "| ---- | -: |",
        "| long | 10 |",
    ]
