"""Layer normalisation inside a cell."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def normalise_gates(
    products: Float[Tensor, "*B G"], gain: Float[Tensor, " G"] | None, gates: int
) -> Float[Tensor, "*B G"]:
    """Each gate's summed inputs brought to mean 0 and variance 1 over its units, times a learned gain.

    Without a gain the products are handed on as they are. The shift is the cell's own bias.
    Source: Ba, Kiros & Hinton 2016, eqs. 4 and 20, for each gate by itself.
    """
    if gain is None:
        return products
    split = products.reshape(*products.shape[:-1], gates, -1)  # (*B, gates, H)
    return functional.layer_norm(split, split.shape[-1:]).flatten(-2) * gain
