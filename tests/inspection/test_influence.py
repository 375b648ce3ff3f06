"""How outputs influence later ones: against plain enumeration, and what each design's graph allows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import throughtime as tt
from throughtime.errors import ShapeError, UsageError
from throughtime.inspection import influence
from throughtime.inspection.influence import _offsets

T, B, X, K = 5, 3, 2, 4


def targets() -> Tensor:
    return torch.randint(0, K, (T, B), generator=torch.Generator().manual_seed(3))


def language_model(cell: str = "gru") -> tt.models.LanguageModel:
    torch.manual_seed(0)
    model = tt.models.LanguageModel(vocabulary_size=K, hidden_size=6, embedding_size=3, cell=cell, dropout=0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # so that there is something to find
    return model.double()


def inputs() -> Tensor:
    return torch.randn(T, B, X, generator=torch.Generator().manual_seed(4))


def test_it_is_the_mean_divergence_over_all_alternatives() -> None:
    model, y = language_model().eval(), targets()[:4, :2]
    lengths = [4, 2]

    def p(sequence: list[int], t: int) -> Tensor:
        before = torch.tensor([[model.config.border_id, *sequence[:t]]]).T
        return model(before)[0][-1, 0].softmax(-1).detach()

    expected = torch.zeros(4, 4, dtype=torch.float64)
    for t in range(4):
        present = [y[:, b].tolist() for b, length in enumerate(lengths) if t < length]
        for i in range(t):
            divergences = []
            for actual in present:
                was = p(actual, t)
                for a in set(range(K)) - {actual[i]}:
                    divergences.append((was * (was / p([*actual[:i], a, *actual[i + 1 :]], t)).log()).sum())
            expected[t, i] = sum(divergences) / len(divergences)
    torch.testing.assert_close(influence(model, y, lengths=lengths), expected)
    assert expected[3, 0] > 1e-6


def test_it_is_never_negative_and_only_goes_forward() -> None:
    found = influence(language_model(), targets())
    assert found.min() >= 0
    assert torch.equal(found, found.tril(-1))
    assert (found.diagonal(-1) > 0).all()


def test_dropout_is_off_and_the_mode_is_kept() -> None:
    model = language_model().train()
    assert torch.equal(influence(model, targets()), influence(model, targets()))
    assert model.training


def test_samples_are_of_all_alternatives() -> None:
    model, y = language_model(), targets()
    torch.testing.assert_close(influence(model, y, samples=K - 1), influence(model, y))
    draws = [influence(model, y, samples=1, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert any(not torch.equal(draws[0], other) for other in draws[2:])


def test_each_alternative_is_drawn_as_often_as_every_other() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([_offsets(5, 2, generator) for _ in range(2000)])
    assert (draws[:, 0] != draws[:, 1]).all()
    counts = draws.flatten().bincount(minlength=5)
    assert counts[0] == 0
    assert ((counts[1:] - 1000).abs() < 5 * (2000 * 0.5 * 0.5) ** 0.5).all()


def design(name: str, **keys: Any) -> Any:
    torch.manual_seed(0)
    shape = {"output_size": K, "hidden_size": 8, "cell": "lstm"}
    return getattr(tt.models, name)(**shape, **({"input_size": X} if "context_size" not in keys else {}), **keys)


def test_a_ignores_y_given_x() -> None:
    assert torch.equal(influence(design("HiddenRecurrent"), targets(), inputs=inputs()), torch.zeros(T, T).double())


def test_b_looks_one_step_back() -> None:
    found = influence(design("OutputRecurrent"), targets(), inputs=inputs())
    assert (found.diagonal(-1) > 1e-6).all()
    assert found.tril(-2).abs().max() < 1e-12


def test_conditional_recurrent_does_not_ignore_y() -> None:
    found = influence(design("ConditionalRecurrent"), targets(), inputs=inputs(), lengths=[5, 4, 0])
    assert (found[torch.ones(T, T).tril(-1).bool()] > 0).all()


@pytest.mark.parametrize("stop", ["given", "end_symbol", "bernoulli_halt", "predicted_length"])
def test_a_sequence_from_a_context(stop: str) -> None:
    model = design("ContextToSequence", context_size=2, stop=stop)
    context = torch.randn(B, 2, generator=torch.Generator().manual_seed(5))
    found = influence(model, targets(), context=context, lengths=[5, 4, 2])
    assert (found[torch.ones(T, T).tril(-1).bool()] > 0).all()
    one = influence(model, targets()[:, :1], context=context[:1])
    # Only the first sequence has a last step.
    torch.testing.assert_close(one[T - 1], found[T - 1], rtol=1e-3, atol=1e-9)


def test_a_batch_is_its_members() -> None:
    model, y = language_model(), targets()
    alone = [influence(model, y[:, b : b + 1]) for b in range(B)]
    torch.testing.assert_close(influence(model, y), torch.stack(alone).mean(0))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: design("SequenceSummary"),
            "influence: the model must have an output at each step, got SequenceSummary",
        ),
        (
            lambda: design("HiddenRecurrent", output="gaussian"),
            "influence: outputs must be \"categorical\", got 'gaussian'",
        ),
    ],
)
def test_models_without_categories_at_each_step(model: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        influence(model(), targets())
    assert str(caught.value) == message


@pytest.mark.parametrize("samples", [0, K])
def test_samples_that_there_are_not(samples: int) -> None:
    with pytest.raises(UsageError) as caught:
        influence(language_model(), targets(), samples=samples)
    assert str(caught.value) == f"influence: samples must be 1 to 3, the number of other categories, got {samples}"


@pytest.mark.usefixtures("unchecked_shapes")
def test_targets_are_categories() -> None:
    with pytest.raises(ShapeError) as caught:
        influence(language_model(), targets().float())
    assert str(caught.value) == (
        "influence: targets must be int64 categories (T, B), got torch.float32 (5, 3); time comes first"
    )
