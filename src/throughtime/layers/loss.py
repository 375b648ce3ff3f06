"""Readout and loss in one: what each target costs, without the logits of all positions."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from throughtime.errors import EngineError, ShapeError
from throughtime.kernels.native.loss import linear_cross_entropy as native
from throughtime.kernels.native.loss import plain_linear_cross_entropy as plain
from throughtime.kernels.native.loss import refusal
from throughtime.layers.readout import IGNORED

ENGINES = ("auto", "native", "torch")


def linear_cross_entropy(
    h: Float[Tensor, "*B H"],
    weight: Float[Tensor, "V H"],
    bias: Float[Tensor, " V"] | None,
    targets: Int[Tensor, "*B"],
    *,
    engine: str = "auto",
) -> Float[Tensor, "*B"]:
    """L(t) = −log softmax(c + V h(t))[y(t)] in nats at each position (eqs. 10.10-10.14); zero where y(t) is -100.

    The same as `torch.nn.functional.cross_entropy` of `linear(h, weight, bias)` with `reduction="none"`, in float32
    or, for float64, in float64. The native engine makes logits in blocks and forgets them, in both directions; the
    torch engine holds all of them, and runs on every device. "auto" takes the native one where it can.

        >>> import torch
        >>> linear_cross_entropy(torch.zeros(5, 2, 8), torch.zeros(4, 8), None, torch.zeros(5, 2).long()).sum()
        tensor(13.8629)

    Raises:
        ShapeError: the sizes do not fit each other.
        EngineError: there is no engine of that name, or the native one, asked for by name, cannot run this.
        IndexError: a target is neither one of the V words nor -100.
    """
    if weight.dim() != 2 or h.shape[-1:] != weight.shape[1:] or targets.shape != h.shape[:-1]:
        raise ShapeError(
            "linear_cross_entropy: h must be (..., H), weight (V, H) and targets (...), got "
            f"{tuple(h.shape)}, {tuple(weight.shape)} and {tuple(targets.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(f"linear_cross_entropy: bias must be ({len(weight)},), got {tuple(bias.shape)}")
    if engine not in ENGINES:
        raise EngineError(f"linear_cross_entropy: engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    rows = h.reshape(targets.numel(), weight.shape[1]), weight, bias, targets.flatten()
    reason = "engine='torch' was asked for" if engine == "torch" else refusal(*rows)
    if engine == "native" and reason is not None:
        raise EngineError(f"linear_cross_entropy: engine='native' cannot run this: {reason}; engine='auto' can")
    nats = native(*rows, IGNORED) if reason is None else plain(*rows, IGNORED)
    return nats.view(targets.shape)
