"""What outputs mean: distributions that are normalised, agree with torch's, and give what is drawn from them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor, distributions

from throughtime.errors import ShapeError
from throughtime.layers.outputs import KINDS, MixtureDensity, OutputDistribution, output_distribution

TIGHT: dict[str, float] = {"rtol": 1e-10, "atol": 1e-10}


def distribution(kind: str, values: int = 3) -> OutputDistribution:
    return output_distribution(kind, values, components=4)


def outputs(of: OutputDistribution, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, of.size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def torchs(kind: str, of: OutputDistribution, o: Tensor) -> Any:
    """The same distribution, as torch has it."""
    if kind == "categorical":
        return distributions.Categorical(logits=o)
    if kind == "bernoulli":
        return distributions.Independent(distributions.Bernoulli(logits=o), 1)
    if kind == "gaussian":
        return distributions.Independent(distributions.Normal(o, torch.ones_like(o)), 1)
    if kind == "learned_gaussian":
        mu, log_sigma = o[..., : of.values], o[..., of.values :]
        return distributions.Independent(distributions.Normal(mu, log_sigma.exp()), 1)
    k, n = of.components, of.values  # type: ignore[attr-defined]
    mu = o[..., k : k + k * n].unflatten(-1, (k, n))
    sigma = o[..., k + k * n :].unflatten(-1, (k, n)).exp()
    parts = distributions.Independent(distributions.Normal(mu, sigma), 1)
    return distributions.MixtureSameFamily(distributions.Categorical(logits=o[..., :k]), parts)


@pytest.mark.parametrize("kind", KINDS)
def test_log_prob_and_mean_are_torchs(kind: str) -> None:
    of = distribution(kind)
    o = outputs(of, 5, 2)
    right = torchs(kind, of, o)
    y = right.sample()
    assert of.log_prob(o, y).shape == (5, 2)
    torch.testing.assert_close(of.log_prob(o, y), right.log_prob(y), **TIGHT)
    mean = right.probs if kind == "categorical" else right.mean
    torch.testing.assert_close(of.mean(o), mean, **TIGHT)
    assert of.mean(o).shape == of.features(y).shape == (5, 2, of.feedback_size)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_log_prob(kind: str) -> None:
    of = distribution(kind)
    o = outputs(of, 3)
    y = torchs(kind, of, o).sample()
    assert torch.autograd.gradcheck(lambda o: of.log_prob(o, y), o.requires_grad_())


@pytest.mark.parametrize("kind", ["gaussian", "learned_gaussian", "mixture_density"])
def test_densities_integrate_to_one(kind: str) -> None:
    of = distribution(kind, values=1)
    o = outputs(of, 6)
    grid = torch.linspace(-60, 60, 120_001, dtype=torch.float64)
    density = of.log_prob(o[:, None], grid[:, None].expand(6, -1, 1)).exp()  # (6, points)
    torch.testing.assert_close(torch.trapezoid(density, grid), torch.ones(6, dtype=torch.float64))
    mean = torch.trapezoid(density * grid, grid)
    torch.testing.assert_close(of.mean(o)[:, 0], mean)


@pytest.mark.parametrize("kind", ["categorical", "bernoulli"])
def test_probabilities_sum_to_one(kind: str) -> None:
    of = distribution(kind)
    o = outputs(of, 4)
    every = torch.arange(3) if kind == "categorical" else torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 3)
    total = of.log_prob(o[:, None].expand(-1, len(every), -1), every.expand(4, *every.shape)).exp().sum(1)
    torch.testing.assert_close(total, torch.ones(4, dtype=torch.float64), **TIGHT)


def test_squared_error_is_the_gaussian_of_unit_variance() -> None:
    of = distribution("gaussian")
    o, y = outputs(of, 7, seed=1), outputs(of, 7, seed=2)
    constant = 3 / 2 * math.log(2 * math.pi)
    torch.testing.assert_close(-of.log_prob(o, y), 0.5 * (y - o).square().sum(-1) + constant, **TIGHT)
    o.requires_grad_()
    (found,) = torch.autograd.grad(-of.log_prob(o, y).sum(), o)
    torch.testing.assert_close(found, o.detach() - y, **TIGHT)  # the constant has no gradient
    # And it is the learned variance's with σ = 1.
    learned = distribution("learned_gaussian")
    both = torch.cat([o.detach(), torch.zeros_like(o)], -1)
    torch.testing.assert_close(learned.log_prob(both, y), of.log_prob(o.detach(), y), **TIGHT)


def test_a_mixture_of_one_component_is_a_gaussian() -> None:
    one, gaussian = MixtureDensity(2, 1), distribution("learned_gaussian", 2)
    o = outputs(gaussian, 5)
    mixture = torch.cat([torch.randn(5, 1, dtype=torch.float64), o], -1)
    y = torch.randn(5, 2, dtype=torch.float64)
    torch.testing.assert_close(one.log_prob(mixture, y), gaussian.log_prob(o, y), **TIGHT)
    torch.testing.assert_close(one.mode(mixture), gaussian.mode(o), **TIGHT)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_come_from_the_distribution(kind: str) -> None:
    of = distribution(kind, values=3 if kind == "categorical" else 1)
    o = outputs(of, 1, seed=3).expand(4000, -1)
    y = of.sample(o, of.noise(4000, like=o, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(y, of.sample(o, of.noise(4000, like=o, generator=torch.Generator().manual_seed(1))))
    if kind in ("categorical", "bernoulli"):
        p = of.mean(o[0]).tolist() if kind == "categorical" else [1 - float(of.mean(o[0])), float(of.mean(o[0]))]
        counts = torch.bincount(y.flatten().long(), minlength=len(p)).tolist()
        assert scipy.stats.chisquare(counts, [4000 * part for part in p]).pvalue > 1e-4
        return
    right = torchs(kind, of, o[:1])

    def cumulative(points: Any) -> Any:
        base = right.base_dist if kind != "mixture_density" else right
        if kind != "mixture_density":
            return base.cdf(torch.as_tensor(points)[:, None])[:, 0].numpy()
        k = of.components  # type: ignore[attr-defined]
        weights, mu, log_sigma = o[0, :k].softmax(-1), o[0, k : 2 * k], o[0, 2 * k :]
        each = distributions.Normal(mu, log_sigma.exp()).cdf(torch.as_tensor(points)[:, None])
        return (each * weights).sum(-1).numpy()

    assert scipy.stats.kstest(y[:, 0].numpy(), cumulative).pvalue > 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("edge", [0.0, 1 - 2**-53])
def test_the_edges_of_the_noise_give_values_that_can_be(kind: str, edge: float) -> None:
    of = distribution(kind)
    o = outputs(of, 6)
    noise = torch.full((6, of.noise_size), edge, dtype=torch.float64)
    y = of.sample(o, noise)
    of.check(y, o, who="test")
    assert of.log_prob(o, y).isfinite().all()


@pytest.mark.parametrize("kind", ["gaussian", "learned_gaussian", "mixture_density"])
def test_gradients_flow_through_continuous_draws(kind: str) -> None:
    of = distribution(kind)
    o = outputs(of, 3)
    noise = of.noise(3, like=o, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda o: of.sample(o, noise), o.requires_grad_())


@pytest.mark.parametrize("kind", ["categorical", "bernoulli", "gaussian", "learned_gaussian"])
def test_the_mode_is_the_likeliest(kind: str) -> None:
    of = distribution(kind)
    o = outputs(of, 5)
    best = of.log_prob(o, of.mode(o))
    for seed in range(20):
        y = of.sample(o, of.noise(5, like=o, generator=torch.Generator().manual_seed(seed)))
        assert (of.log_prob(o, y) <= best + 1e-12).all()


def test_the_mode_of_a_mixture_is_the_mean_of_its_heaviest_component() -> None:
    of = MixtureDensity(1, 2)
    o = torch.tensor([[0.0, 1.0, 5.0, -3.0, 0.0, 0.0]])
    assert of.mode(o).tolist() == [[-3.0]]


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_of_the_kind_that_draws_need(kind: str) -> None:
    of = distribution(kind, 2)
    like = torch.zeros(1, dtype=torch.float64)
    noise = of.noise(500, 4, like=like, generator=torch.Generator().manual_seed(0))
    assert noise.shape == (500, 4, of.noise_size)
    assert noise.dtype == torch.float64
    uniform = {"categorical": of.noise_size, "bernoulli": of.noise_size, "mixture_density": 1}.get(kind, 0)
    for index in range(of.noise_size):
        name = "uniform" if index < uniform else "norm"
        assert scipy.stats.kstest(noise[..., index].flatten().numpy(), name).pvalue > 1e-4


def test_errors() -> None:
    numbers, categories = distribution("gaussian"), distribution("categorical")
    o = torch.zeros(4, 2, 3)
    with pytest.raises(
        ShapeError, match=r"^A: targets must be floating-point \(4, 2, 3\), got torch.float32 \(4, 2\)$"
    ):
        numbers.check(torch.zeros(4, 2), o, who="A")
    with pytest.raises(ShapeError, match=r"got torch.int64 \(4, 2, 3\)"):
        numbers.check(torch.zeros(4, 2, 3, dtype=torch.int64), o, who="A")
    with pytest.raises(ShapeError, match=r"^A: targets must be int64 categories \(4, 2\), got torch.float32 \(4, 2\)$"):
        categories.check(torch.zeros(4, 2), o, who="A")
    with pytest.raises(ShapeError, match=r"got torch.int64 \(2, 4\)"):
        categories.check(torch.zeros(2, 4, dtype=torch.int64), o, who="A")
