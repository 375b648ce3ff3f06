"""The classic experiments: what their generators promise, the same again by seed, and that networks learn from them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from throughtime.data.sequences import Sequences
from throughtime.errors import UsageError
from throughtime.tasks import design
from throughtime.tasks.experiments import adding, command, copy_memory, digits, experiment, reber
from throughtime.tasks.experiments.outputs import outputs
from throughtime.training.run_folder import RunFolder


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)


# -- adding ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [2, 3, 40])
def test_the_target_is_the_sum_of_the_two_marked_values_one_in_each_half(length: int) -> None:
    data = adding.sequences(50, seeded(), length=length)
    assert data.inputs is not None
    assert data.inputs.shape == (length, 50, 2)
    values, marks = data.inputs.unbind(-1)
    assert ((values >= 0) & (values < 1)).all()
    assert ((marks == 0) | (marks == 1)).all()
    assert (marks[: length // 2].sum(0) == 1).all()
    assert (marks[length // 2 :].sum(0) == 1).all()
    assert torch.equal(torch.where(marks == 1, values, 0).sum(0)[:, None], data.targets)


def test_every_step_is_marked_now_and_then_and_always_answering_1_has_the_baselines_error() -> None:
    data = adding.sequences(20_000, seeded(), length=10)
    assert data.inputs is not None
    share = data.inputs[..., 1].mean(1)
    torch.testing.assert_close(share, torch.full((10,), 0.2), atol=0.02, rtol=0)
    assert float((data.targets - 1).square().mean()) == pytest.approx(adding.BASELINE, rel=0.03)


def test_adding_needs_two_halves() -> None:
    with pytest.raises(UsageError, match=r"^adding: length must be at least 2 steps, got 1$"):
        adding.sequences(1, seeded(), length=1)


# -- copy memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 7])
def test_the_symbols_come_first_the_delimiter_when_they_are_wanted_and_the_targets_last(length: int) -> None:
    data = copy_memory.sequences(30, seeded(), length=length)
    assert data.inputs is not None
    assert data.inputs.shape == data.targets.shape == (length + 20, 30)
    assert set(data.inputs[:10].flatten().tolist()) == set(range(8))
    assert (data.inputs[10 : 9 + length] == copy_memory.BLANK).all()
    assert (data.inputs[9 + length] == copy_memory.DELIMITER).all()
    assert (data.inputs[10 + length :] == copy_memory.BLANK).all()
    assert len(data.inputs[10 + length :]) == 10
    assert (data.targets[:-10] == copy_memory.BLANK).all()
    assert torch.equal(data.targets[-10:], data.inputs[:10])


def test_copy_memory_needs_a_step_for_the_delimiter() -> None:
    with pytest.raises(UsageError, match=r"^copy memory: length must be at least 1 step, got 0$"):
        copy_memory.sequences(1, seeded(), length=0)


def test_the_baseline_of_copy_memory_is_the_loss_of_guessing_the_symbols() -> None:
    length = 5
    data = copy_memory.sequences(3, seeded(), length=length)
    o = torch.full((length + 20, 3, 10), -math.inf)
    o[:-10, :, copy_memory.BLANK] = 0
    o[-10:, :, :8] = 0
    losses = torch.nn.functional.cross_entropy(o.flatten(0, 1), data.targets.flatten())
    assert float(losses) == pytest.approx(copy_memory.baseline(length), rel=1e-6)


class Echo:
    """Outputs of a copy memory that forgets some of it."""

    def __init__(self, data: Sequences, wrong: int) -> None:
        self.o = torch.nn.functional.one_hot(data.targets, 10).float()
        self.o[-1, :wrong] = self.o[-1, :wrong].roll(1, -1)


def test_recall_counts_symbols_and_whole_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    data = copy_memory.sequences(20, seeded(), length=3)
    echo = Echo(data, wrong=5)
    monkeypatch.setattr(copy_memory, "outputs", lambda model, _: model.o)
    monkeypatch.setattr(copy_memory.design, "evaluate", lambda model, _: {"loss": 0.5, "accuracy": 1.0})
    assert copy_memory.measure(echo, data) == {  # type: ignore[arg-type]
        "loss": 0.5,
        "symbols_recalled": pytest.approx(1 - 5 / 200),
        "sequences_recalled": pytest.approx(15 / 20),
    }


# -- the embedded Reber grammar ----------------------------------------------------------------------------------------

# The grammar once more, as regular expressions: after X of the lower path come loops back to the upper one.
_FROM_4 = "(?:XT*VP)*(?:S|XT*VV)"
_REBER = f"B(?:TS*X{_FROM_4}|PT*V(?:P{_FROM_4}|V))E"
_EMBEDDED = re.compile(f"B(?:T{_REBER}T|P{_REBER}P)E")


def test_reber_strings_are_of_the_grammar() -> None:
    texts = [walk.text for walk in reber.walks(400, seeded())]
    assert all(_EMBEDDED.fullmatch(text) for text in texts)
    assert {text[1] for text in texts} == {"T", "P"}
    assert all(text[1] == text[-2] for text in texts)
    assert min(map(len, texts)) == 9
    assert max(map(len, texts)) > 20


def test_the_choices_are_exactly_the_symbols_that_can_go_on_to_a_string_of_the_grammar() -> None:
    walks = reber.walks(300, seeded(1))
    continuations: dict[str, set[str]] = {}
    for text in (walk.text for walk in reber.walks(1500, seeded(2))):
        for end in range(1, len(text)):
            continuations.setdefault(text[:end], set()).add(text[end])
    checked = 0
    for walk in walks:
        assert len(walk.choices) == len(walk.text) - 1
        for place, choice in enumerate(walk.choices, 1):
            assert walk.text[place] in choice
            if place < 5:  # short beginnings have been seen with every continuation
                assert set(choice) == continuations[walk.text[:place]]
                checked += 1
    assert checked == 4 * 300


def test_both_ways_out_of_a_node_are_taken_equally_often() -> None:
    generator = seeded()
    texts = [reber.walk(generator).text for _ in range(1000)]
    assert sum(text[1] == "T" for text in texts) / 1000 == pytest.approx(0.5, abs=0.05)
    assert sum(text[3] == "T" for text in texts) / 1000 == pytest.approx(0.5, abs=0.05)


def test_reber_sequences_are_the_string_and_the_string_one_on() -> None:
    walks = reber.walks(20, seeded())
    data = reber.sequences(walks)
    assert data.inputs is not None
    assert data.lengths is not None
    for row, walk in enumerate(walks):
        length = int(data.lengths[row])
        read = "".join(reber.ALPHABET[symbol] for symbol in data.inputs[:length, row])
        wanted = "".join(reber.ALPHABET[symbol] for symbol in data.targets[:length, row])
        assert read + "E" == "B" + wanted == walk.text


def perfect(walks: list[reber.Walk]) -> torch.Tensor:
    o = torch.zeros(max(len(walk.choices) for walk in walks), len(walks), 7)
    for row, walk in enumerate(walks):
        for step, choice in enumerate(walk.choices):
            o[step, row, [reber.ALPHABET.index(symbol) for symbol in choice]] = 1.0
    return o


def test_a_string_is_right_only_if_all_that_may_come_next_is_above_all_that_may_not() -> None:
    walks = reber.walks(6, seeded())
    choices = [walk.choices for walk in walks]
    o = perfect(walks)
    assert reber.legal_highest(o, choices).all()
    step = next(step for step, choice in enumerate(choices[2]) if len(choice) == 2)
    o[step, 2, reber.ALPHABET.index(choices[2][step][1])] = 0.0  # as low as those that may not
    right = reber.legal_highest(o, choices)
    assert not right[step, 2]
    assert int((~right).sum()) == 1


def test_the_repeated_symbol_is_measured_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    walks = reber.walks(8, seeded())
    o = perfect(walks)
    last = len(walks[3].choices) - 2
    o[last, 3] = o[last, 3].flip(0) + torch.nn.functional.one_hot(torch.tensor(0), 7) * 2
    o[0, 5] = 0.0
    monkeypatch.setattr(reber, "outputs", lambda model, _: model)
    assert reber.measure(o, walks) == {  # type: ignore[arg-type]
        "strings_right": pytest.approx(6 / 8),
        "repetition_right": pytest.approx(7 / 8),
    }


def test_the_strings_to_learn_from_and_to_test_on_are_apart() -> None:
    found = reber.experiment()
    source = found.data(0)
    assert source.batches_per_epoch == 8

    def texts(data: Sequences) -> set[str]:
        assert data.inputs is not None
        assert data.lengths is not None
        return {str(data.inputs[:length, row].tolist()) for row, length in enumerate(data.lengths.tolist())}

    parts = [set().union(*(texts(source.batch(index)) for index in range(8))), texts(found.valid), texts(found.test)]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert len(found.valid) == len(found.test) == 256


# -- digits ------------------------------------------------------------------------------------------------------------


def test_the_split_of_the_digits_is_disjoint_complete_and_fixed() -> None:
    parts = digits.split(1797)
    assert [len(part) for part in parts] == [1300, 147, 350]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(1797))
    assert all(torch.equal(part, again) for part, again in zip(parts, digits.split(1797), strict=True))


def test_the_digits_are_read_row_by_row_between_0_and_1() -> None:
    found = pytest.importorskip("sklearn.datasets", reason="the digits are scikit-learn's").load_digits()
    data = digits.images()
    assert data.inputs is not None
    assert data.inputs.shape == (64, 1797, 1)
    assert float(data.inputs.max()) == 1.0
    assert torch.equal(data.inputs[:, 7, 0].reshape(8, 8) * 16, torch.tensor(found.images[7], dtype=torch.float32))
    assert data.targets.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_an_image_is_moved_sideways_by_at_most_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "NOISE", 0.0)
    image = torch.rand(8, 8, generator=seeded())
    data = Sequences(torch.tensor([3]), image.reshape(64, 1, 1), summary=True)
    drawn = digits.changed(data, 60, seeded())
    assert drawn.inputs is not None
    assert drawn.targets.tolist() == [3] * 60
    empty = torch.zeros(8, 1)
    moves = [torch.cat([empty, image[:, :-1]], 1), image, torch.cat([image[:, 1:], empty], 1)]
    found = [[torch.equal(one, move) for move in moves] for one in drawn.inputs[..., 0].T.reshape(60, 8, 8)]
    assert all(sum(matches) == 1 for matches in found)
    assert all(torch.tensor(found).any(0))


def test_without_scikit_learn_the_digits_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(
        UsageError,
        match=r"^digits: expected scikit-learn, which has the images, got none; "
        r"pip install 'throughtime\[experiments\]'$",
    ):
        digits.images()


# -- all of them -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [adding.sequences, copy_memory.sequences])
def test_the_same_seed_makes_the_same_sequences_and_another_seed_others(make: Any) -> None:
    one, again, other = (make(5, seeded(seed), length=30) for seed in (1, 1, 2))
    assert torch.equal(one.inputs, again.inputs)
    assert torch.equal(one.targets, again.targets)
    assert not torch.equal(one.inputs, other.inputs)


def test_the_same_seed_walks_the_same_strings() -> None:
    assert reber.walks(9, seeded(1)) == reber.walks(9, seeded(1)) != reber.walks(9, seeded(2))


def test_outputs_are_the_same_in_parts_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = reber.experiment()
    torch.manual_seed(0)
    model = found.model(cell="gru", hidden_size=4)
    rows = torch.arange(11)
    part = found.valid.select(rows)
    at_once = outputs(model, part)
    monkeypatch.setattr("throughtime.tasks.experiments.outputs._ROWS", 3)
    torch.testing.assert_close(outputs(model, part), at_once)
    assert at_once.shape == (*part.targets.shape, 7)


def test_cells_begin_as_named_and_gates_by_the_longest_lag() -> None:
    assert experiment.cell_keys("gru", 50) == {"cell": "gru", "initialisation": "chrono", "longest_lag": 50}
    assert experiment.cell_keys("lstm") == {"cell": "lstm"}
    assert experiment.cell_keys("rnn", 50) == {"cell": "rnn"}
    assert experiment.cell_keys("irnn", 50) == {"cell": "rnn", "nonlinearity": "relu", "initialisation": "identity"}
    with pytest.raises(UsageError, match=r"^experiment: cell must be one of rnn, lstm, gru, irnn, got 'elman'$"):
        experiment.cell_keys("elman")


def trained(found: experiment.Experiment, folder: Path, **training: Any) -> experiment.Row:
    keys = {"cells": ["gru"], "hidden_size": 32, "learning_rate": 1e-2, "evaluate_every": 50, "weight_decay": 0.0}
    (row,) = experiment.run(found, folder, **{**keys, **training})
    assert row.ended != "diverged"
    return row


def test_adding_is_learnt(tmp_path: Path) -> None:
    row = trained(adding.experiment(6), tmp_path, max_steps=250)
    assert row.figures["squared_error"] < adding.BASELINE / 2


def test_copying_is_learnt(tmp_path: Path) -> None:
    row = trained(copy_memory.experiment(1), tmp_path, hidden_size=64, max_steps=200)
    assert row.figures["loss"] < copy_memory.baseline(1) * 0.985
    assert row.figures["symbols_recalled"] > 1.2 / copy_memory.KINDS


def test_the_reber_grammar_is_learnt(tmp_path: Path) -> None:
    found = reber.experiment()
    row = trained(found, tmp_path, max_steps=150)
    assert row.figures["loss"] < math.log(7) / 2
    assert row.figures["strings_right"] > 0.3


def test_digits_are_learnt(tmp_path: Path) -> None:
    pytest.importorskip("sklearn.datasets", reason="the digits are scikit-learn's")
    row = trained(digits.experiment(), tmp_path, max_steps=100)
    assert row.figures["accuracy"] > 2 / digits.CLASSES


def test_the_command_writes_a_table_a_picture_and_all_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--run", str(tmp_path / "run"), "--cells", "rnn", "irnn", "--seeds", "3", "--length", "8"]
    sizes = {"hidden_size": 4, "steps": 4, "evaluate_every": 2, "learning_rate": 1e-3, "batch_size": 5}
    command.main("The adding problem.", adding.experiment, length=600, arguments=common, **sizes)
    printed = capsys.readouterr().out
    assert [line.split()[1] for line in printed.splitlines() if line.startswith("|")] == ["cell", "----", "rnn", "irnn"]
    assert "always 1: 0.1667 (squared error)" in printed
    results = json.loads((tmp_path / "run" / "results.json").read_text("utf-8"))
    assert results["experiment"] == "adding problem, T = 8"
    assert results["settings"]["longest_lag"] == 8
    assert [row["cell"] for row in results["rows"]] == ["rnn", "irnn"]
    assert [step for step, _ in results["rows"][0]["curve"]] == [2, 4]
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    figures = results["rows"][1]["figures"]
    loaded = design.load(RunFolder.open(tmp_path / "run" / "irnn-3", design.NAME).path)
    assert design.evaluate(loaded, adding.experiment(8).test) == pytest.approx(figures)
    # The same once more, from what is there: nothing is trained again.
    command.main("The adding problem.", adding.experiment, length=600, arguments=[*common, "--resume"], **sizes)
    assert json.loads((tmp_path / "run" / "results.json").read_text("utf-8"))["rows"] == results["rows"]
    with pytest.raises(SystemExit, match="2"):
        command.main("The adding problem.", adding.experiment, length=600, arguments=common, **sizes)
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: run folder")


def test_a_cell_that_diverges_is_a_row_that_says_so(tmp_path: Path) -> None:
    found = adding.experiment(100)
    (row,) = experiment.run(
        found,
        tmp_path,
        cells=["irnn"],
        hidden_size=8,
        max_steps=50,
        evaluate_every=50,
        optimizer="sgd",
        learning_rate=1e6,
        gradient_clip=0.0,
    )
    assert (row.ended, row.figures, row.curve) == ("diverged", {}, [])
    assert row.steps < 50
    assert f"{row.steps}, diverged" in experiment.table([row])
