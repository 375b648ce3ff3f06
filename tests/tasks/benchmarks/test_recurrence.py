"""What a benchmark counts, that both sides do the same, and that a wrong result is not timed."""

from __future__ import annotations

import re

import pytest
import torch

from throughtime import nn
from throughtime.errors import FailureError
from throughtime.tasks.benchmarks import recurrence
from throughtime.tasks.benchmarks.recurrence import CELLS, FORWARD, TRAINING, Case, cases, measure, sides
from throughtime.tasks.benchmarks.timing import Contest


@pytest.mark.parametrize("cell", CELLS)
def test_operations_are_those_of_the_products(cell: str) -> None:
    """Each weight matrix at each step of each sequence: a multiplication and an addition per entry."""
    case = Case(cell, hidden=7, batch=3, steps=5, passes=FORWARD)
    ours, _ = sides(case)
    entries = sum(weight.numel() for weight in ours.layer.parameters() if weight.dim() == 2)
    assert case.operations() == 2 * 5 * 3 * entries
    assert Case(cell, hidden=7, batch=3, steps=5, passes=TRAINING).operations() == 3 * case.operations()


def test_a_ragged_case_counts_what_it_holds() -> None:
    case = Case("lstm", hidden=7, batch=50, steps=9, ragged=True)
    lengths = case.lengths().tolist()
    assert lengths == case.lengths().tolist()
    assert lengths != sorted(lengths)
    assert (min(lengths), max(lengths)) == (1, 9)
    assert case.operations() / Case("lstm", hidden=7, batch=50, steps=9).operations() == sum(lengths) / (50 * 9)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_both_sides_do_the_same(cell: str, ragged: bool, precision: str) -> None:
    ours, theirs = sides(Case(cell, hidden=5, batch=4, steps=6, precision=precision, ragged=ragged))
    assert isinstance(ours.layer, nn.RecurrentLayer)
    assert type(theirs.layer) is getattr(torch.nn, cell.upper())
    got, expected = ours.named_step(), theirs.named_step()
    parameters = [name for name, _ in theirs.layer.named_parameters()]
    assert list(got) == ["outputs", "gradient of inputs", *(f"gradient of {name}" for name in parameters)]
    close = {"atol": 1e-5, "rtol": 1e-5} if precision == "fp32" else {"atol": 0.1, "rtol": 0.1}
    for name, value in expected.items():
        torch.testing.assert_close(
            got[name].float(), value.float(), msg=lambda text, name=name: f"{name}: {text}", **close
        )


def test_forward_alone_keeps_nothing_for_a_backward_pass() -> None:
    ours, theirs = sides(Case("gru", hidden=5, batch=4, steps=6, passes=FORWARD))
    for side in (ours, theirs):
        (outputs,) = side.step()
        assert not outputs.requires_grad
        assert not side.inputs.requires_grad


def test_making_a_case_uses_no_random_number() -> None:
    state = torch.get_rng_state()
    sides(Case("rnn", hidden=5, batch=4, steps=6))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_row_says_what_it_was_and_how_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrence, "compete", lambda *_, **__: Contest(0.5, 2.0, 3.0, 5.0, 7))
    monkeypatch.setattr(recurrence, "multiply_add_peak", lambda *_: 1e6)
    case = Case("lstm", hidden=5, batch=4, steps=6)
    row = measure(case, rounds=1, seconds=0).as_dict()
    speed = case.operations() / 0.5
    assert row["ratio"] == 4.0
    assert row["ours_gflops"] * 1e9 == pytest.approx(speed)
    assert row["torch_gflops"] * 1e9 == pytest.approx(speed / 4)
    assert row["ours_share_of_peak"] == pytest.approx(speed / 1e6)
    assert row["torch_share_of_peak"] == pytest.approx(speed / 4e6)
    assert (row["lowest_ratio"], row["highest_ratio"], row["rounds"]) == (3.0, 5.0, 7)
    assert 0 <= row["ours_error"] < 1e-5
    assert row["torch_error"] == 0


def test_nothing_is_a_share_of_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrence, "multiply_add_peak", lambda *_: None)
    row = measure(Case("rnn", hidden=5, batch=4, steps=6), rounds=1, seconds=0).as_dict()
    assert row["peak_gflops"] is row["ours_share_of_peak"] is row["torch_share_of_peak"] is None


@pytest.mark.parametrize(("factor", "told"), [(1.01, "0.01"), (float("nan"), "nan")])
def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch, factor: float, told: str) -> None:
    def wrong(self: nn.LSTM, *arguments: object, **options: object) -> object:
        outputs, state = nn.RecurrentLayer.forward(self, *arguments, **options)  # type: ignore[arg-type]
        return outputs * factor, state

    def unexpected(*_: object, **__: object) -> None:
        raise AssertionError("timed")

    monkeypatch.setattr(nn.LSTM, "forward", wrong)
    monkeypatch.setattr(recurrence, "compete", unexpected)
    start = "bench recurrence: LSTM H 5 B 4, forward, fp32: ours differs from torch.nn's in"
    line = rf"^{start} outputs by {told}, expected 0\.0001 at most; nothing was timed; please report it"
    with pytest.raises(FailureError, match=line):
        measure(Case("lstm", hidden=5, batch=4, steps=6, passes=FORWARD), rounds=1, seconds=0)


def test_a_wrong_gradient_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def doubled(self: nn.GRU, inputs: torch.Tensor, **options: object) -> object:
        twice = inputs + (inputs - inputs.detach())
        return nn.RecurrentLayer.forward(self, twice, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(nn.GRU, "forward", doubled)
    with pytest.raises(FailureError, match=re.escape("in gradient of inputs by 1, expected")):
        measure(Case("gru", hidden=5, batch=4, steps=6), rounds=1, seconds=0)


def test_all_combinations_those_of_a_table_together() -> None:
    grid = cases(["rnn", "gru"], [3, 4], [1, 2], [FORWARD, TRAINING], ["fp32", "bf16"], steps=9, ragged=True)
    assert len(grid) == len(set(grid)) == 32
    assert all(case.steps == 9 and case.ragged for case in grid)
    tables = [(case.precision, case.passes) for case in grid]
    assert tables == sorted(tables, key=tables.index)
