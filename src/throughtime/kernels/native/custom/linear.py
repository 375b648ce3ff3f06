"""y = x Wᵀ + b by the native engine: the products of a cell of one's own that are hoisted out of its time loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from throughtime.kernels.native import library

FORMATS = {torch.float32: "float32", torch.float64: "float64"}
# Multiplications below which PyTorch's own product is as good.
_SMALL = 1 << 20


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`; inputs (..., I), weight (O, I), bias (O,) -> (..., O)."""
    tensors = [inputs, weight] if bias is None else [inputs, weight, bias]
    if (
        weight.dim() != 2 or (bias is not None and bias.dim() != 1) or inputs.numel() * weight.shape[0] < _SMALL
        or inputs.shape[-1] != weight.shape[1] or not all(t.dtype == inputs.dtype for t in tensors)
        or inputs.dtype not in FORMATS or any(t.device.type != "cpu" or type(t) not in _PLAIN for t in tensors)
    ):  # fmt: skip
        return functional.linear(inputs, weight, bias)
    y: Tensor = _Linear.apply(inputs, weight, bias)  # type: ignore[no-untyped-call]
    return y


_PLAIN = (Tensor, torch.nn.Parameter)


class NativeLinear(TorchFunctionMode):
    """Within it, `torch.nn.Linear` computes its product on the native engine."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is functional.linear:
            return linear(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return product(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            rows = d_y.flatten(0, -2)
            return (
                d_y @ weight if ctx.needs_input_grad[0] else None,
                rows.mT @ inputs.flatten(0, -2) if ctx.needs_input_grad[1] else None,
                rows.sum(0) if ctx.needs_input_grad[2] else None,
            )
        return gradients(inputs, weight, d_y, ctx.needs_input_grad)


def product(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y = x Wᵀ + b, without a graph; the same to the bit for any number of threads."""
    y = inputs.new_empty(*inputs.shape[:-1], len(weight))
    _call(inputs, weight, {"bias": bias, "y": y})
    return y


def gradients(
    inputs: Tensor, weight: Tensor, d_y: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Of x, W and b, None for each that is not wanted, from that of y."""
    likes = zip(("d_x", "d_weight", "d_bias"), (inputs, weight, weight[:, 0]), wanted, strict=True)
    found = {name: like.new_empty(like.shape) for name, like, needed in likes if needed}
    if found:
        _call(inputs, weight, {"d_y": d_y, **found})
    return found.get("d_x"), found.get("d_weight"), found.get("d_bias")


def _call(inputs: Tensor, weight: Tensor, others: dict[str, Tensor | None]) -> None:
    """Hand the addresses over; `whole` keeps alive what they point to."""
    tensors = {"x": inputs, "weight": weight, **others}
    whole = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
    outputs, width = weight.shape
    addresses = {name: tensor.data_ptr() for name, tensor in whole.items()}
    rows = inputs.numel() // width
    library.load().linear(FORMATS[inputs.dtype], rows, width, outputs, addresses, torch.get_num_threads())
