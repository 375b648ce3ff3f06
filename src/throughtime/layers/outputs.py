"""What the unnormalised outputs o(t) mean: the distribution p(y(t) | o(t)) that they are the parameters of.

The loss of any of them is L(t) = −log p(y(t) | o(t)) (eq. 10.14): cross-entropy for categories, the logistic loss for
binary values, and half the squared error, up to a constant, for a Gaussian of unit variance.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from throughtime.errors import DivergedError, ShapeError

_LOG_2_PI = math.log(2 * math.pi)


class OutputDistribution(ABC):
    """p(y | o) for any leading axes: o (*, `size`); y (*) of categories, (*, `values`) of numbers.

    size: numbers in o(t). values: numbers in y(t). feedback_size: numbers by which y(t) enters a network that sees it.
    noise_size: random numbers that one draw of y(t) takes, as `noise` draws them.
    """

    size: int
    feedback_size: int
    noise_size: int

    def __init__(self, values: int) -> None:
        self.values = values

    @abstractmethod
    def log_prob(self, o: Tensor, y: Tensor) -> Float[Tensor, "..."]:
        """log p(y | o) in nats, (*)."""

    @abstractmethod
    def sample(self, o: Tensor, noise: Float[Tensor, "... _"]) -> Tensor:
        """The y that random numbers (*, noise_size) pick: where y is continuous, differentiably in o."""

    def draw(self, o: Tensor, noise: Float[Tensor, "... _"]) -> Tensor:
        """`sample` of outputs that are seen to be numbers.

        Raises:
            DivergedError: they are not.
        """
        if o.isnan().any():
            raise DivergedError("sample: the network's outputs are no numbers; its weights have diverged: train again "
                                "with a lower learning rate, or take an earlier checkpoint")  # fmt: skip
        return self.sample(o, noise)

    @abstractmethod
    def mean(self, o: Tensor) -> Float[Tensor, "... _"]:
        """E[features(y) | o], (*, feedback_size): of categories their probabilities, ŷ."""

    @abstractmethod
    def mode(self, o: Tensor) -> Tensor:
        """The likeliest y; of a mixture the mean of its heaviest component."""

    def features(self, y: Tensor) -> Tensor:
        """y as numbers (*, feedback_size) that a network reads."""
        return y

    def check(self, y: Tensor, o: Tensor, *, who: str) -> None:
        """See that targets fit the outputs.

        Raises:
            ShapeError: another shape than o's with `values` numbers in place of `size`.
        """
        expected = (*o.shape[:-1], self.values)
        if tuple(y.shape) != expected or not y.is_floating_point():
            raise ShapeError(f"{who}: targets must be floating-point {expected}, got {y.dtype} {tuple(y.shape)}")

    def noise(self, *shape: int, like: Tensor, generator: torch.Generator | None = None) -> Float[Tensor, "... _"]:
        """Random numbers for draws of y of the given leading shape, on the device of `like`: uniform in [0, 1)."""
        return _drawn(torch.rand, (*shape, self.noise_size), like, generator)


class Categorical(OutputDistribution):
    """y one of K categories, int64; ŷ = softmax(o) (eqs. 10.10-10.11)."""

    noise_size = 1

    def __init__(self, values: int) -> None:
        super().__init__(values)
        self.size = self.feedback_size = values

    def log_prob(self, o: Tensor, y: Tensor) -> Tensor:
        """log softmax(o) at y."""
        return o.log_softmax(-1).gather(-1, y[..., None])[..., 0]

    def sample(self, o: Tensor, noise: Tensor) -> Tensor:
        """The category in whose part of [0, 1) the number lies."""
        return (o.softmax(-1).cumsum(-1) <= noise).sum(-1).clamp(max=self.values - 1)

    def mean(self, o: Tensor) -> Tensor:
        """ŷ = softmax(o)."""
        return o.softmax(-1)

    def mode(self, o: Tensor) -> Tensor:
        """The category of the largest o."""
        return o.argmax(-1)

    def features(self, y: Tensor) -> Tensor:
        """One-hot."""
        # functional.one_hot would make whole numbers of eight bytes first.
        zeros = torch.zeros(*y.shape, self.values, device=y.device)
        return zeros.scatter_(-1, y[..., None], 1)

    def check(self, y: Tensor, o: Tensor, *, who: str) -> None:
        """See that targets are categories.

        Raises:
            ShapeError: not int64 of o's leading shape.
        """
        expected = tuple(o.shape[:-1])
        if tuple(y.shape) != expected or y.dtype != torch.int64:
            raise ShapeError(f"{who}: targets must be int64 categories {expected}, got {y.dtype} {tuple(y.shape)}")


class Bernoulli(OutputDistribution):
    """y of independent binary values, 0 or 1 as floating-point numbers; p(y = 1) = σ(o)."""

    def __init__(self, values: int) -> None:
        super().__init__(values)
        self.size = self.feedback_size = self.noise_size = values

    def log_prob(self, o: Tensor, y: Tensor) -> Tensor:
        """Σ y log σ(o) + (1 - y) log σ(-o)."""
        return -functional.binary_cross_entropy_with_logits(o, y, reduction="none").sum(-1)

    def sample(self, o: Tensor, noise: Tensor) -> Tensor:
        """1 where the number lies below σ(o)."""
        return (noise < torch.sigmoid(o)).to(o.dtype)

    def mean(self, o: Tensor) -> Tensor:
        """σ(o)."""
        return torch.sigmoid(o)

    def mode(self, o: Tensor) -> Tensor:
        """1 where σ(o) is above one half."""
        return (o > 0).to(o.dtype)


class Gaussian(OutputDistribution):
    """y ~ N(o, 1): −log p(y | o) = ½ ‖y - o‖² + ½ log 2π for each value, the squared error up to a constant.

    Source: Goodfellow, Bengio & Courville 2016, section 5.5.1 and after eq. 10.15.
    """

    def __init__(self, values: int) -> None:
        super().__init__(values)
        self.size = self.feedback_size = self.noise_size = values

    def log_prob(self, o: Tensor, y: Tensor) -> Tensor:
        """−½ Σ ((y - o)² + log 2π)."""
        return -0.5 * ((y - o).square() + _LOG_2_PI).sum(-1)

    def sample(self, o: Tensor, noise: Tensor) -> Tensor:
        """o + ε."""
        return o + noise

    def noise(self, *shape: int, like: Tensor, generator: torch.Generator | None = None) -> Float[Tensor, "... _"]:
        """Standard normal numbers ε."""
        return _drawn(torch.randn, (*shape, self.noise_size), like, generator)

    def mean(self, o: Tensor) -> Tensor:
        """o."""
        return o

    def mode(self, o: Tensor) -> Tensor:
        """o."""
        return o


class LearnedGaussian(OutputDistribution):
    """y ~ N(μ, σ²) with o = (μ, log σ): each value has a variance of its own that the network learns.

    Source: Nix & Weigend 1994; Goodfellow, Bengio & Courville 2016, section 6.2.2.4.
    """

    def __init__(self, values: int) -> None:
        super().__init__(values)
        self.size, self.feedback_size, self.noise_size = 2 * values, values, values

    def log_prob(self, o: Tensor, y: Tensor) -> Tensor:
        """−½ Σ (((y - μ) / σ)² + 2 log σ + log 2π)."""
        mu, log_sigma = o.chunk(2, -1)
        return _gaussian_log_prob(y, mu, log_sigma).sum(-1)

    def sample(self, o: Tensor, noise: Tensor) -> Tensor:
        """μ + σ ε."""
        mu, log_sigma = o.chunk(2, -1)
        return mu + log_sigma.exp() * noise

    def noise(self, *shape: int, like: Tensor, generator: torch.Generator | None = None) -> Float[Tensor, "... _"]:
        """Standard normal numbers ε."""
        return _drawn(torch.randn, (*shape, self.noise_size), like, generator)

    def mean(self, o: Tensor) -> Tensor:
        """μ."""
        return o.chunk(2, -1)[0]

    def mode(self, o: Tensor) -> Tensor:
        """μ."""
        return o.chunk(2, -1)[0]


class MixtureDensity(OutputDistribution):
    """y ~ Σ_k π_k N(μ_k, σ_k²) with o = (log π up to a constant, μ, log σ), components outermost.

    Source: Bishop 1994; Graves 2013, section 4; Goodfellow, Bengio & Courville 2016, section 6.2.2.4.
    """

    def __init__(self, values: int, components: int) -> None:
        super().__init__(values)
        self.components = components
        self.size, self.feedback_size, self.noise_size = components * (1 + 2 * values), values, 1 + values

    def _parts(self, o: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log π (*, K), μ and log σ (*, K, values)."""
        k = self.components
        logits, mu, log_sigma = torch.split(o, [k, k * self.values, k * self.values], -1)
        shape = (*o.shape[:-1], k, self.values)
        return logits.log_softmax(-1), mu.reshape(shape), log_sigma.reshape(shape)

    def log_prob(self, o: Tensor, y: Tensor) -> Tensor:
        """log Σ_k π_k N(y; μ_k, σ_k²)."""
        log_pi, mu, log_sigma = self._parts(o)
        return (log_pi + _gaussian_log_prob(y[..., None, :], mu, log_sigma).sum(-1)).logsumexp(-1)

    def sample(self, o: Tensor, noise: Tensor) -> Tensor:
        """A component by the first number, μ_k + σ_k ε by the others."""
        log_pi, mu, log_sigma = self._parts(o)
        drawn = (log_pi.exp().cumsum(-1) <= noise[..., :1]).sum(-1).clamp(max=self.components - 1)  # (*)
        return self._of(drawn, mu) + self._of(drawn, log_sigma).exp() * noise[..., 1:]

    def noise(self, *shape: int, like: Tensor, generator: torch.Generator | None = None) -> Float[Tensor, "... _"]:
        """A uniform number for the component, standard normal ones for y."""
        component = _drawn(torch.rand, (*shape, 1), like, generator)
        return torch.cat([component, _drawn(torch.randn, (*shape, self.values), like, generator)], -1)

    def _of(self, component: Tensor, parts: Tensor) -> Tensor:
        index = component[..., None, None].expand(*component.shape, 1, self.values)
        return parts.gather(-2, index)[..., 0, :]

    def mean(self, o: Tensor) -> Tensor:
        """Σ_k π_k μ_k."""
        log_pi, mu, _ = self._parts(o)
        return (log_pi.exp()[..., None] * mu).sum(-2)

    def mode(self, o: Tensor) -> Tensor:
        """μ of the component with the greatest π."""
        log_pi, mu, _ = self._parts(o)
        return self._of(log_pi.argmax(-1), mu)


def _drawn(
    draw: Callable[..., Tensor], shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Random numbers of a shape, of the type and on the device of `like`, wherever the generator is."""
    device = like.device if generator is None else generator.device
    return draw(shape, dtype=like.dtype, device=device, generator=generator).to(like.device)


def _gaussian_log_prob(y: Tensor, mu: Tensor, log_sigma: Tensor) -> Tensor:
    return -0.5 * (((y - mu) * (-log_sigma).exp()).square() + _LOG_2_PI) - log_sigma


KINDS = ("categorical", "bernoulli", "gaussian", "learned_gaussian", "mixture_density")


def output_distribution(kind: str, values: int, *, components: int = 1) -> OutputDistribution:
    """The distribution of that name, one of `KINDS`, over y(t) of `values` numbers or categories."""
    if kind == "mixture_density":
        return MixtureDensity(values, components)
    kinds: dict[str, Callable[[int], OutputDistribution]] = {
        "categorical": Categorical,
        "bernoulli": Bernoulli,
        "gaussian": Gaussian,
        "learned_gaussian": LearnedGaussian,
    }
    return kinds[kind](values)
