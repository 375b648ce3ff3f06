"""Echo state networks: the recurrence that was asked for, and the readout that the closed form says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import throughtime as tt
from throughtime.errors import ConfigError, RunFolderError, ShapeError, UsageError
from throughtime.models import EchoState, EchoStateNetwork, spectral_radius
from throughtime.models.ridge import RidgeMoments

KEYS: dict[str, Any] = {"input_size": 2, "output_size": 3, "hidden_size": 12, "sparsity": 0.5, "washout": 4}


def data(steps: int = 40, batch: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(steps, batch, size, generator=random, dtype=torch.float64) for size in (2, 3))
    return x, y


def mackey_glass(steps: int) -> Tensor:
    """ẋ = 0.2 x(t-17) / (1 + x(t-17)^10) - 0.1 x(t), by Runge-Kutta at steps of 0.1, each tenth value (steps,)."""
    delay, inner = 170, 10
    x = [1.2] * (delay + 1)

    def slope(now: float, delayed: float) -> float:
        return 0.2 * delayed / (1 + delayed**10) - 0.1 * now

    for _ in range(steps * inner):
        now, old, older = x[-1], x[-1 - delay], x[-delay]
        k1 = slope(now, old)
        k2 = slope(now + 0.05 * k1, (old + older) / 2)
        k3 = slope(now + 0.05 * k2, (old + older) / 2)
        x.append(now + 0.1 * (k1 + 2 * k2 + 2 * k3 + slope(now + 0.1 * k3, older)) / 6)
    return torch.tensor(x[-steps * inner :: inner], dtype=torch.float64)


def nrmse(predictions: Tensor, targets: Tensor) -> float:
    """The root of the mean squared error by the targets' standard deviation."""
    return float((predictions - targets).square().mean().sqrt() / targets.std(correction=0))


# -- the reservoir -----------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.integers(5, 40), st.floats(0.1, 2.0), st.floats(0.0, 0.5), st.integers(0, 99))
def test_the_spectral_radius_is_what_was_asked(units: int, radius: float, sparsity: float, seed: int) -> None:
    model = EchoStateNetwork(hidden_size=units, spectral_radius=radius, sparsity=sparsity, seed=seed)
    assert spectral_radius(model.cell.weight_hh) == pytest.approx(radius, rel=1e-9)
    largest = max(abs(complex(value)) for value in torch.linalg.eigvals(model.cell.weight_hh))
    assert largest == pytest.approx(radius, rel=1e-9)


def test_it_is_drawn_by_its_seed_alone_and_draws_nothing_from_others() -> None:
    before = torch.get_rng_state()
    one, same, other = (EchoStateNetwork(**KEYS, seed=seed).cell.weight_hh for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_scaling_and_sparsity_are_those_of_the_configuration() -> None:
    cell = EchoStateNetwork(hidden_size=200, input_size=30, input_scaling=0.25, sparsity=0.9).cell
    assert 0.2 < float(cell.weight_ih.abs().max()) <= 0.25
    assert 0.2 < float(cell.bias_ih.abs().max()) <= 0.25
    assert float((cell.weight_hh == 0).double().mean()) == pytest.approx(0.9, abs=0.01)


def test_nothing_is_left_to_gradient_descent_and_all_of_it_runs_on_unfold() -> None:
    model = EchoStateNetwork(**KEYS)
    assert not list(model.parameters())
    assert all(tensor.dtype == torch.float64 for name, tensor in model.tensors().items() if name != "fitted")
    assert len(tt.kernels.explain(model.cell, data()[0]).engines) == 1


def test_a_step_leaks_as_it_was_told() -> None:
    cell = EchoStateNetwork(**KEYS, leak_rate=0.3).cell
    x, h = data()[0][0], torch.randn(2, 12, dtype=torch.float64)
    expected = 0.7 * h + 0.3 * torch.tanh(x @ cell.weight_ih.mT + cell.bias_ih + h @ cell.weight_hh.mT)
    torch.testing.assert_close(cell(x, (h,)).h, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(("radius", "forgets"), [(0.8, True), (3.0, False)])
def test_below_one_it_forgets_how_it_began_and_far_above_it_does_not(radius: float, forgets: bool) -> None:
    model = EchoStateNetwork(hidden_size=60, spectral_radius=radius, input_scaling=0.1)
    x = torch.randn(300, 1, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    random = torch.Generator().manual_seed(4)
    starts = [torch.randn(1, 60, generator=random, dtype=torch.float64) for _ in range(2)]
    ends = [tt.unfold(model.cell, x, (start,))[1].h for start in starts]
    distance = float((ends[0] - ends[1]).norm())
    assert (distance < 1e-10) if forgets else (distance > 1e-2)


# -- the readout -------------------------------------------------------------------------------------------------------


def features(model: EchoStateNetwork, x: Tensor) -> Tensor:
    """The rows (h(t), x(t), 1) that the readout learns from (N, F + 1), the washout left out."""
    h, _ = tt.unfold(model.cell, x, engine="reference")
    rows = torch.cat([h, x, torch.ones_like(x[..., :1])], -1)
    return rows[model.config.washout :].flatten(0, 1)


@pytest.mark.parametrize("ridge", [1e-8, 0.5, 20.0])
def test_the_readout_is_the_least_squares_solution_with_the_penalty_as_rows(ridge: float) -> None:
    model, (x, y) = EchoStateNetwork(**KEYS, ridge=ridge), data()
    model.fit([(x, y)])
    rows, targets = features(model, x), y[4:].flatten(0, 1)
    penalty = ridge**0.5 * torch.eye(rows.shape[1], dtype=torch.float64)[:-1]  # a row for each weight, none for c
    augmented = torch.cat([rows, penalty]), torch.cat([targets, targets.new_zeros(len(penalty), 3)])
    expected = torch.linalg.lstsq(*augmented, driver="gelsd").solution
    torch.testing.assert_close(model.weight_ho, expected[:-1].mT, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(model.bias_ho, expected[-1], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(model.predict(x)[0][4:].flatten(0, 1), rows @ expected, rtol=1e-6, atol=1e-8)


@settings(max_examples=10)
@given(st.lists(st.integers(1, 15), min_size=1, max_size=5))
def test_a_stream_of_chunks_is_one_pass_over_the_whole(sizes: list[int]) -> None:
    x, y = data(steps=30 + sum(sizes))
    whole, chunked = EchoStateNetwork(**KEYS).fit([(x, y)]), EchoStateNetwork(**KEYS)
    cuts = [*sizes, len(x) - sum(sizes)]
    chunked.fit(zip(x.split(cuts), y.split(cuts), strict=True), stream=True)
    assert chunked.moments.rows == whole.moments.rows == 2 * (len(x) - 4)
    torch.testing.assert_close(chunked.weight_ho, whole.weight_ho, rtol=1e-7, atol=1e-9)


def test_padding_is_not_learned_from_nor_looked_at() -> None:
    (x, y), (nan_x, nan_y) = data(), data()
    nan_x[25:, 1], nan_y[25:, 1] = float("nan"), float("nan")
    ragged = EchoStateNetwork(**KEYS).fit([(nan_x, nan_y, [40, 25])])
    alone = EchoStateNetwork(**KEYS).fit([(x[:, :1], y[:, :1]), (x[:25, 1:], y[:25, 1:])])
    torch.testing.assert_close(ragged.weight_ho, alone.weight_ho, rtol=1e-8, atol=1e-10)
    predictions, state = ragged.predict(nan_x, lengths=[40, 25])
    own, own_state = ragged.predict(x[:25, 1:])
    torch.testing.assert_close(predictions[:25, 1:], own, rtol=1e-12, atol=1e-12)
    assert not predictions[25:, 1].any()
    torch.testing.assert_close(state.h[1:], own_state.h, rtol=1e-12, atol=1e-12)
    assert state.steps.tolist() == [40, 25]


def test_fitting_anew_forgets_and_adding_does_not() -> None:
    (x, y), (more_x, more_y) = data(), data(seed=1)
    model, both = EchoStateNetwork(**KEYS).fit([(x, y)]), EchoStateNetwork(**KEYS).fit([(x, y), (more_x, more_y)])
    model.partial_fit(more_x, more_y)
    torch.testing.assert_close(model.solve().weight_ho, both.weight_ho)
    model.fit([(more_x, more_y)])
    torch.testing.assert_close(model.weight_ho, EchoStateNetwork(**KEYS).fit([(more_x, more_y)]).weight_ho)


# -- use ---------------------------------------------------------------------------------------------------------------


def test_running_freely_feeds_every_prediction_back() -> None:
    x = torch.sin(torch.arange(300, dtype=torch.float64) / 4).reshape(-1, 1, 1).expand(-1, 2, 1)
    model = EchoStateNetwork(hidden_size=30, washout=20).fit([(x[:-1], x[1:])])
    future, state = model.generate(x[:50], 5)
    expected, own = model.predict(x[:50])
    by_hand = [expected[-1:]]
    for _ in range(4):
        y, own = model(by_hand[-1], own)
        by_hand.append(y)
    torch.testing.assert_close(future, torch.cat(by_hand))
    torch.testing.assert_close(state.h, own.h)
    torch.testing.assert_close(future, x[50:55], rtol=0, atol=1e-3)


def test_it_comes_back_from_a_folder_to_the_bit(tmp_path: Path) -> None:
    x, y = data()
    model = EchoStateNetwork(**KEYS, seed=7).fit([(x, y)])
    model.save(tmp_path)
    loaded = EchoStateNetwork.load(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded.predict(x)[0], model.predict(x)[0])
    with pytest.raises(RunFolderError, match="holds a EchoStateNetwork, expected a LanguageModel"):
        tt.models.LanguageModel.load(tmp_path)


def test_it_predicts_the_mackey_glass_series_and_carries_it_on() -> None:
    series = mackey_glass(2600)[:, None, None] - 0.95
    model = EchoStateNetwork(hidden_size=200, spectral_radius=0.95, leak_rate=0.6, ridge=1e-8, input_scaling=0.8)
    model.fit([(series[:1800], series[1:1801])])
    predictions, _ = model.predict(series[:-1])
    assert nrmse(predictions[1800:], series[1801:]) < 1e-3
    assert nrmse(series[1800:-1], series[1801:]) > 0.1  # the last value again
    future, _ = model.generate(series[:1801], 84)
    assert nrmse(future, series[1801:1885]) < 0.1


# -- misuse ------------------------------------------------------------------------------------------------------------


def unfitted() -> EchoStateNetwork:
    return EchoStateNetwork(**KEYS)


def fitted() -> EchoStateNetwork:
    return unfitted().fit([data()])


@pytest.mark.parametrize(
    ("misuse", "error", "message"),
    [
        (lambda: unfitted().predict(data()[0]), UsageError,
         r"EchoStateNetwork: expected a readout that has been learned, got none; call fit\(\) first"),
        (lambda: fitted().predict(torch.zeros(5, 2)), ShapeError,
         r"EchoStateNetwork: inputs must be \(T, B, 2\), got \(5, 2\); the time axis comes first"),
        (lambda: unfitted().fit([(data()[0], data()[0])]), ShapeError,
         r"EchoStateNetwork: targets must be \(40, 2, 3\), got \(40, 2, 2\)"),
        (lambda: unfitted().fit([]), UsageError,
         "ridge regression: expected rows to learn from, got none; the washout may take them all"),
        (lambda: unfitted().fit([data(steps=4)]), UsageError,
         "ridge regression: expected rows to learn from, got none; the washout may take them all"),
        (lambda: fitted().predict(data()[0], EchoState(torch.zeros(1, 12).double(), torch.zeros(1).long())),
         ShapeError, r"LeakyCell: state must be RNNState\(h \(2, 12\)\), got \[\(1, 12\)\]"),
        (lambda: fitted().generate(data()[0], 3), ShapeError,
         "EchoStateNetwork: to feed outputs back, output_size must be input_size=2, got 3"),
        (lambda: EchoStateNetwork(hidden_size=9).generate(torch.zeros(0, 1, 1), 3), ShapeError,
         "EchoStateNetwork: the prompt must have at least one step, got none"),
        (lambda: EchoStateNetwork(hidden_size=9).generate(torch.zeros(2, 1, 1), 0), UsageError,
         "EchoStateNetwork: steps must be at least 1, got 0"),
        (lambda: EchoStateNetwork(hidden_size=2, sparsity=0.99), UsageError,
         "EchoStateNetwork: the W of 2 units drawn with sparsity=0.99 and seed=0 has spectral radius 0; set sparsity "
         "lower, or another seed"),
        (lambda: EchoStateNetwork(leak_rate=0.0, hiden_size=3), ConfigError,
         "EchoStateNetwork: 2 faults: .*hiden_size: unknown key, did you mean hidden_size?.*"),
    ],
)  # fmt: skip
def test_misuse_is_answered_by_one_line(
    misuse: Callable[[], object], error: type[Exception], message: str, unchecked_shapes: None
) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        misuse()


def test_a_solution_that_the_data_leave_open_is_refused() -> None:
    moments = RidgeMoments(3, 1)
    moments.add(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(
        UsageError, match=r"^ridge regression: 2 rows do not determine 4 weights for each output in float64 with ridge="
    ):
        moments.solve(0.0)
