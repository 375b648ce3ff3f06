"""Gradients as products of what a step sends back and what it saw, never multiplied out unless they are asked for.

Of a parameter of a recurrent network, row b of the batch contributes at step t

    dW(t, b) = δ(t, b) u(t, b)ᵀ      δ: gradient of a summed input; u: what W was multiplied with

(eqs. 10.26-10.28 of Goodfellow, Bengio & Courville 2016 before their sums over t). All that is asked of such gradients
is asked for many at a time, in a few large products.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

# Elements of the gradients that are multiplied out at a time where norms need them.
_AT_A_TIME = 1 << 24


@dataclass(frozen=True)
class Product:
    """N gradients of G rows of a parameter: gradient n is the sum over r of left[n, r] right[n, r]ᵀ.

    Without `right` it is the sum of left[n, r] itself, as for a bias.
    """

    left: Float[Tensor, "N R G"]
    right: Float[Tensor, "N R K"] | None

    def transposed(self) -> Product:
        """One gradient for each r, summed over n."""
        return Product(self.left.transpose(0, 1), None if self.right is None else self.right.transpose(0, 1))

    def full(self) -> Tensor:
        """(N, G, K), or (N, G)."""
        return self.left.sum(1) if self.right is None else self.left.mT @ self.right

    @cached_property
    def squared_norms(self) -> Float[Tensor, " N"]:
        """‖Σ_r l_r u_rᵀ‖² = Σ_{r,s} (l_r · l_s)(u_r · u_s): R² numbers instead of G · K where R is small."""
        if self.right is None:
            return self.left.sum(1).square().sum(-1)
        rows, height, width = self.left.shape[1], self.left.shape[2], self.right.shape[2]
        if rows * (height + width) <= height * width:
            gram = (self.left @ self.left.mT) * (self.right @ self.right.mT)  # (N, R, R)
            # Where rows cancel each other, rounding may leave a little less than nothing.
            return gram.sum((1, 2)).clamp(min=0)
        count = max(1, _AT_A_TIME // max(1, height * width))
        pieces = zip(torch.split(self.left, count), torch.split(self.right, count), strict=True)
        return torch.cat([(left.mT @ right).square().sum((1, 2)) for left, right in pieces])

    def projections(self, direction: Float[Tensor, "G K"] | Float[Tensor, " G"]) -> Float[Tensor, " N"]:
        """⟨gradient n, direction⟩ = Σ_r l_r · (D u_r)."""
        if self.right is None:
            return self.left.sum(1) @ direction
        return (self.left * (self.right @ direction.mT)).sum((1, 2))

    def weighted_sum(self, weights: Float[Tensor, " N"]) -> Tensor:
        """Σ_n w_n gradient n: (G, K), or (G,)."""
        left = (self.left * weights[:, None, None]).flatten(0, 1)  # (N · R, G)
        return left.sum(0) if self.right is None else left.mT @ self.right.flatten(0, 1)


@dataclass(frozen=True)
class Factors:
    """N gradients of one parameter of shape `shape`: products for its rows, from the first on, one below the other."""

    shape: torch.Size
    products: tuple[Product, ...]

    def transposed(self) -> Factors:
        """One gradient for each of the other axis."""
        return Factors(self.shape, tuple(product.transposed() for product in self.products))

    def full(self) -> Tensor:
        """(N, *shape)."""
        parts = [product.full() for product in self.products]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return whole.reshape(-1, *self.shape)

    def squared_norms(self) -> Float[Tensor, " N"]:
        """The squared Frobenius norm of each."""
        return torch.stack([product.squared_norms for product in self.products]).sum(0)

    def projections(self, direction: Tensor) -> Float[Tensor, " N"]:
        """The inner product of each with `direction`, of the parameter's shape."""
        heights = [product.left.shape[2] for product in self.products]
        direction = direction if self.products[0].right is not None else direction.flatten()
        parts = zip(self.products, torch.split(direction, heights), strict=True)
        return torch.stack([product.projections(part) for product, part in parts]).sum(0)

    def weighted_sum(self, weights: Float[Tensor, " N"]) -> Tensor:
        """Σ_n w_n gradient n, of the parameter's shape."""
        return torch.cat([product.weighted_sum(weights) for product in self.products]).reshape(self.shape)
