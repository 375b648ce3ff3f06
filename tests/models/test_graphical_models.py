"""The designs as directed graphical models: every sequence of small models is looked at.

Goodfellow, Bengio & Courville 2016, section 10.2.3.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor

import throughtime as tt

TIGHT: dict[str, float] = {"rtol": 1e-10, "atol": 1e-10}
WITH_INPUTS = [tt.models.HiddenRecurrent, tt.models.OutputRecurrent, tt.models.ConditionalRecurrent]
# An end symbol is a category.
ENDS = [
    *(("categorical", stop) for stop in ("given", "end_symbol", "bernoulli_halt", "predicted_length")),
    *(("bernoulli", stop) for stop in ("given", "bernoulli_halt", "predicted_length")),
]
STEPS = 4


def design(kind: Any, **keys: Any) -> Any:
    """A design with inputs, its weights far enough from zero for y(t-1) to matter."""
    torch.manual_seed(2)
    model = kind(**{"input_size": 2, "output_size": 2, "hidden_size": 4, "cell": "gru", **keys}).double().eval()
    return strengthened(model)


def of_context(stop: str = "given", **keys: Any) -> Any:
    torch.manual_seed(6)
    keys = {"context_size": 2, "output_size": 2, "hidden_size": 4, "cell": "gru", "max_length": 3, **keys}
    return strengthened(tt.models.ContextToSequence(stop=stop, **keys).double().eval())


def strengthened(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model


def inputs(steps: int = STEPS) -> Tensor:
    return torch.randn(steps, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(8))


def every(output: str, steps: int, size: int = 2) -> Tensor:
    """Every sequence: (T, N) categories, or (T, N, values) of zeros and ones."""
    if output == "categorical":
        sequences = list(itertools.product(range(size), repeat=steps))
        return torch.tensor(sequences, dtype=torch.int64).reshape(len(sequences), steps).mT
    sequences = list(itertools.product((0.0, 1.0), repeat=steps * size))
    return torch.tensor(sequences, dtype=torch.float64).reshape(len(sequences), steps, size).transpose(0, 1)


def as_numbers(y: Tensor) -> list[int]:
    """Each sequence (T, N) or (T, N, values) of zeros and ones as one number."""
    digits = y.long().reshape(len(y), y.shape[1], -1).transpose(0, 1).flatten(1)  # (N, T·values)
    return (digits @ 2 ** torch.arange(digits.shape[1])).tolist()


def p_value(drawn: list[int], likely: dict[int, float]) -> float:
    """Of the χ² test; what is expected fewer than five times is counted together."""
    total = len(drawn)
    rare = [key for key, p in likely.items() if p * total < 5]
    counts = [sum(found == key for found in drawn) for key in likely if key not in rare]
    expected = [p * total for key, p in likely.items() if key not in rare]
    assert set(drawn) <= set(likely)
    if rare:
        counts, expected = [*counts, total - sum(counts)], [*expected, total - sum(expected)]
    return float(scipy.stats.chisquare(counts, expected).pvalue)


# -- normalised ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WITH_INPUTS)
@pytest.mark.parametrize(("output", "steps"), [("categorical", 0), ("categorical", 4), ("bernoulli", 3)])
def test_probabilities_of_all_sequences_sum_to_one(kind: Any, output: str, steps: int) -> None:
    model, y = design(kind, output=output), every(output, steps)
    p = model.log_prob(y, inputs(steps).expand(-1, y.shape[1], -1)).total.exp()
    assert float(p.sum().detach()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("output", "stop"), ENDS)
@pytest.mark.parametrize("context_as", ["input", "both"])
def test_probabilities_over_all_lengths_sum_to_one(output: str, stop: str, context_as: str) -> None:
    model = of_context(stop, output=output, context_as=context_as)
    x = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    total, going_on = 0.0, 0.0
    for length in [3] if stop == "given" else range(4):
        y = every(output, length)
        found = model.log_prob(y, x.expand(y.shape[1], -1))
        if length < 3 or stop in ("given", "predicted_length"):
            total += float(found.total.exp().sum().detach())
        else:
            # All that has not ended within three symbols: the row in which these would end is left out.
            going_on = float(found.steps[:3].sum(0).exp().sum().detach())
    if stop in ("end_symbol", "bernoulli_halt"):
        assert 0.01 < total < 0.99
    assert total + going_on == pytest.approx(1, abs=1e-12)


# -- drawn -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WITH_INPUTS)
@pytest.mark.parametrize("output", ["categorical", "bernoulli"])
def test_ancestral_sampling_draws_sequences_as_often_as_they_are_likely(kind: Any, output: str) -> None:
    steps = 3 if output == "categorical" else 2
    model, y, x = design(kind, output=output), every(output, steps), inputs(steps)
    p = model.log_prob(y, x.expand(-1, y.shape[1], -1)).total.exp().tolist()
    drawn = model.sample(x.expand(-1, 3000, -1), generator=torch.Generator().manual_seed(4))
    assert p_value(as_numbers(drawn), dict(zip(as_numbers(y), p, strict=True))) > 1e-4


@pytest.mark.parametrize(("output", "stop"), ENDS)
def test_ancestral_sampling_draws_lengths_too(output: str, stop: str) -> None:
    size = 2 if output == "categorical" else 1
    model = of_context(stop, output=output, output_size=size)
    x = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(11)
    drawn, lengths = model.sample(x.expand(3000, -1), max_length=3, generator=generator)
    likely: dict[int, float] = {}
    for length in range(4):
        y = every(output, length, size)
        found = model.log_prob(y, x.expand(y.shape[1], -1)) if length or stop != "given" else None
        # A sequence is cut after three symbols, whether it has ended or not.
        rows = None if found is None else found.steps[: (length + 1 if length < 3 or stop == "predicted_length" else 3)]
        if rows is not None and (stop != "given" or length == 3):
            likely |= dict(zip(_numbers(y, length), rows.sum(0).exp().tolist(), strict=True))
    assert sum(likely.values()) == pytest.approx(1)
    got = [_numbers(drawn[: int(length), row : row + 1], int(length))[0] for row, length in enumerate(lengths.tolist())]
    assert p_value(got, likely) > 1e-4


def _numbers(y: Tensor, length: int) -> list[int]:
    """Sequences of several lengths as numbers: that of the symbols, behind a one for the length."""
    return [number + 2**length for number in as_numbers(y)] if length else [1] * y.shape[1]


# -- what depends on what --------------------------------------------------------------------------------------------


def steps_of(model: Any, y: list[int]) -> Tensor:
    """log p of each step of one sequence, given its inputs."""
    return model.log_prob(torch.tensor(y)[:, None], inputs(len(y))).steps[:, 0].detach()


def test_design_a_ignores_earlier_outputs_given_the_inputs() -> None:
    model = design(tt.models.HiddenRecurrent)
    for y in itertools.product(range(2), repeat=3):
        assert torch.equal(steps_of(model, [*y, 1])[3], steps_of(model, [0, 0, 0, 1])[3])


def test_design_b_sees_the_last_output_and_no_earlier_one() -> None:
    model = design(tt.models.OutputRecurrent)
    for y in itertools.product(range(2), repeat=2):
        for last in range(2):
            torch.testing.assert_close(steps_of(model, [*y, last, 1])[3], steps_of(model, [0, 0, last, 1])[3], **TIGHT)
    assert abs(steps_of(model, [0, 0, 0, 1])[3] - steps_of(model, [0, 0, 1, 1])[3]) > 0.01


def test_outputs_that_feed_back_depend_on_every_earlier_one() -> None:
    model = design(tt.models.ConditionalRecurrent)
    right = steps_of(model, [0, 0, 0, 1])
    for t in range(3):
        y = [0, 0, 0, 1]
        y[t] = 1
        found = steps_of(model, y)
        assert abs(found[3] - right[3]) > 1e-4
        torch.testing.assert_close(found[:t], right[:t], **TIGHT)  # nothing flows back in time


@pytest.mark.parametrize("kind", WITH_INPUTS)
def test_no_output_sees_a_later_input(kind: Any) -> None:
    model, y, x = design(kind), torch.tensor([[0], [1], [1], [0]]), inputs()
    changed = x.clone()
    changed[2] += 1
    before, after = (model.log_prob(y, each).steps.detach() for each in (x, changed))
    assert torch.equal(before[:2], after[:2])
    assert (before[2] - after[2]).abs() > 1e-4


def test_from_both_ends_every_input_is_seen() -> None:
    model, y, x = design(tt.models.HiddenRecurrent, bidirectional=True), torch.tensor([[0], [1], [1]]), inputs(3)
    for t in range(3):
        changed = x.clone()
        changed[t] += 1
        found = (model.log_prob(y, x).steps - model.log_prob(y, changed).steps).abs().detach()
        assert (found > 1e-5).all()


@pytest.mark.parametrize("cell", ["lstm", "skip"])
def test_h_decouples_past_and_future(cell: str) -> None:
    """p(y(3), y(4) | h(2), y(2), x) is p(y(3), y(4) | y(1), y(2), x): the state holds all that matters of the past."""
    model, x = design(tt.models.ConditionalRecurrent, cell=cell), inputs()
    for past in itertools.product(range(2), repeat=2):
        states, fed = model.first_states(x[0]), torch.zeros(1, 2, dtype=torch.float64)
        for t in range(2):
            _, states = model.advance(torch.cat([x[t], fed], -1), states)
            fed = torch.nn.functional.one_hot(torch.tensor([past[t]]), 2).double()
        for future in itertools.product(range(2), repeat=2):
            state, last, found = states, fed, []
            for t in range(2):
                h, state = model.advance(torch.cat([x[2 + t], last], -1), state)
                found.append(model.readout(h).log_softmax(-1)[0, future[t]])
                last = torch.nn.functional.one_hot(torch.tensor([future[t]]), 2).double()
            torch.testing.assert_close(torch.stack(found), steps_of(model, [*past, *future])[2:], **TIGHT)


def test_a_state_is_all_that_a_sequence_that_goes_on_needs() -> None:
    """Decoding goes on from a state as it does from the whole past."""
    model = of_context("bernoulli_halt")
    about = tt.decoding.given(model, context=torch.tensor([0.2, 0.4], dtype=torch.float64))
    for past in itertools.product(range(2), repeat=2):
        state = about.initial_state(1)
        for token in (2, *past):
            log_p, state = about.step(torch.tensor([token]), state)
        y = torch.tensor([*past, 0])[:, None]
        x = torch.tensor([[0.2, 0.4]], dtype=torch.float64)
        torch.testing.assert_close(log_p[0, 0], model.log_prob(y, x).steps[2, 0], **TIGHT)
        torch.testing.assert_close(log_p[0, 2], model.log_prob(y[:2], x).steps[2, 0], **TIGHT)
        assert float(log_p.exp().sum().detach()) == pytest.approx(1)


@pytest.mark.parametrize("output", ["gaussian", "learned_gaussian", "mixture_density"])
def test_densities_over_two_steps_integrate_to_one(output: str) -> None:
    model = design(tt.models.ConditionalRecurrent, output=output, output_size=1, mixture_components=2, hidden_size=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    grid = torch.linspace(-9, 9, 241, dtype=torch.float64)
    y = torch.cartesian_prod(grid, grid).mT[..., None]  # (2, N, 1)
    density = model.log_prob(y, inputs(2).expand(-1, y.shape[1], -1)).total.exp().reshape(241, 241).detach()
    assert float(torch.trapezoid(torch.trapezoid(density, grid), grid)) == pytest.approx(1, abs=1e-5)
