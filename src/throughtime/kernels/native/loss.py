"""The loss of a readout as PyTorch operators, `torch.ops.throughtime.linear_cross_entropy` and its backward pass.

It is −log softmax(W h + b) at each position's target, computed in blocks, so that the logits of all positions never
stand in memory together (cpp/loss.hpp says how).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

from throughtime.kernels.native import library

_PRECISIONS = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}
# Logits that take no more bytes than this are kept for the backward pass, which then need not compute them again.
_KEPT_BYTES = 1 << 25
# Multiplications of one product below which more threads cost more than they bring.
_SMALL = 1 << 20

_SIGNATURE = "str precision, int ignored, Tensor h, Tensor weight, Tensor? bias, Tensor targets"
_operators: Any = torch.library.Library("throughtime", "FRAGMENT")  # type: ignore[no-untyped-call]
_operators.define(
    f"linear_cross_entropy({_SIGNATURE}, bool keep) -> (Tensor nats, Tensor normaliser, Tensor logits)",
    tags=torch.Tag.needs_exact_strides,
)
_operators.define(
    f"linear_cross_entropy_backward({_SIGNATURE}, Tensor normaliser, Tensor logits, Tensor d_nats, bool[] wanted) -> "
    "(Tensor d_h, Tensor d_weight, Tensor d_bias)",
    tags=torch.Tag.needs_exact_strides,
)


def linear_cross_entropy(h: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, ignored: int) -> Tensor:
    """−log softmax(W h + b) at the targets, in nats: (N,), in float32 or, for float64, in float64.

    h is (N, H), `weight` (V, H), `bias` (V,), `targets` (N,) int64; where a target is `ignored` the loss is zero, and
    nothing is computed. Operands of products are rounded as autocast, or the weight's type, says; sums never are.

    Raises:
        IndexError: a target is neither one of the V words nor `ignored`.
    """
    precision = _precision(weight)
    computed = torch.float64 if weight.dtype == torch.float64 else torch.float32
    h, weight = h.to(computed), weight.to(computed)
    bias = None if bias is None else bias.to(computed)
    differentiable = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (h, weight, bias))
    keep = differentiable and len(weight) * len(h) * computed.itemsize <= _KEPT_BYTES
    nats: Tensor = torch.ops.throughtime.linear_cross_entropy(precision, ignored, h, weight, bias, targets, keep)[0]
    return nats


def refusal(h: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> str | None:
    """Why the native code does not compute this loss; None where it does."""
    tensors = [tensor for tensor in (h, weight, bias, targets) if tensor is not None]
    if (elsewhere := next((t.device for t in tensors if t.device.type != "cpu"), None)) is not None:
        return f"the native engine is for processors, a tensor is on {elsewhere}"
    if (reason := _missing_reason()) is not None:
        return reason
    if targets.dtype != torch.int64:
        return f"the native engine takes targets of int64, got {targets.dtype}"
    if (other := next((t.dtype for t in tensors[:-1] if t.dtype not in _PRECISIONS), None)) is not None:
        return f"the native engine computes in float32, float64 and bfloat16, not in {other}"
    if torch.is_autocast_enabled("cpu"):
        if torch.get_autocast_dtype("cpu") not in _PRECISIONS:
            return f"the native engine has no autocast to {torch.get_autocast_dtype('cpu')}"
    elif len({t.dtype for t in tensors[:-1]}) > 1:
        return "the native engine takes h, weight and bias of one type"
    return _transformed()


def _missing_reason() -> str | None:
    return library.missing_reason()


# For torch.compile it is a fact of the installation, nothing to trace.
_missing_reason._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _transformed() -> str | None:
    """Transformations of functions that cannot see into an operator."""
    if torch.compiler.is_compiling():
        return None
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "the native engine does not work under torch.func transforms"
    if forward_ad._current_level >= 0:
        return "the native engine has no forward-mode derivative"
    return None


def _precision(weight: Tensor) -> str:
    """What the operands of products are rounded to."""
    if torch.is_autocast_enabled("cpu") and weight.dtype == torch.float32:
        return _PRECISIONS[torch.get_autocast_dtype("cpu")]
    return _PRECISIONS[weight.dtype]


def _forward(
    precision: str, ignored: int, h: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    results = nats, normaliser, logits = _results(precision, ignored, h, weight, bias, targets, keep)
    tensors = _contiguous(h, weight, bias, targets) | {"nats": nats, "normaliser": normaliser}
    if keep:
        tensors["logits"] = logits
    _call(library.load().loss_forward, precision, ignored, tensors)
    return results


def _results(
    precision: str, ignored: int, h: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Where the results will stand: losses (N,), log Σ exp of the logits (N,), and W h (V, N) where it is kept."""
    positions, words = len(h), len(weight)
    return h.new_empty(positions), h.new_empty(positions), h.new_empty((words, positions) if keep else (0, 0))


def _backward(
    precision: str,
    ignored: int,
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    normaliser: Tensor,
    logits: Tensor,
    d_nats: Tensor,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    results = _gradients(h, weight, bias, wanted)
    tensors = _contiguous(h, weight, bias, targets)
    # Hooks on saved tensors may hand them back in another layout.
    tensors |= {"normaliser": normaliser.contiguous(), "d_nats": d_nats.contiguous()}
    if logits.numel():
        tensors["logits"] = logits.contiguous()
    names = ("d_h", "d_weight", "d_bias")
    tensors |= {name: result for name, result, want in zip(names, results, wanted, strict=True) if want}
    _call(library.load().loss_backward, precision, ignored, tensors)
    return results


def _gradients(h: Tensor, weight: Tensor, bias: Tensor | None, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Where the gradients will stand; an empty tensor for each that is not wanted."""
    shapes = [h.shape, weight.shape, weight.shape[:1]]
    d_h, d_weight, d_bias = (h.new_empty(shape if want else 0) for shape, want in zip(shapes, wanted, strict=True))
    return d_h, d_weight, d_bias


def _contiguous(h: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> dict[str, Tensor]:
    """The tensors by name, without a bias that is None, each in one piece."""
    given = {"h": h, "weight": weight, "bias": bias, "targets": targets}
    return {name: tensor.contiguous() for name, tensor in given.items() if tensor is not None}


def _call(function: Any, precision: str, ignored: int, tensors: dict[str, Tensor]) -> None:
    """Hand the addresses over. `tensors` keeps alive what they point to."""
    positions, units = tensors["h"].shape
    words = len(tensors["weight"])
    threads = 1 if positions * units * words < _SMALL else torch.get_num_threads()
    addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    function(precision, (positions, units, words), ignored, addresses, threads)


def _fake_backward(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    _, _, h, weight, bias, *_, wanted = given
    return _gradients(h, weight, bias, wanted)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    precision, ignored, h, weight, bias, targets, _ = inputs
    _, normaliser, logits = output
    ctx.plain = precision, ignored
    ctx.save_for_backward(h, weight, bias, targets, normaliser, logits)
    ctx.mark_non_differentiable(normaliser, logits)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, d_nats: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if d_nats is None:
        return (None,) * 7
    h, weight, bias, targets, normaliser, logits = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[2:5])
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        found = _differentiably(ctx.plain, (h, weight, bias), targets, d_nats, wanted)
    else:
        arguments = (*ctx.plain, h, weight, bias, targets, normaliser, logits, d_nats, wanted)
        found = torch.ops.throughtime.linear_cross_entropy_backward(*arguments)
    return (None, None, *(g if want else None for g, want in zip(found, wanted, strict=True)), None, None)


def _differentiably(
    plain: tuple[str, int], tensors: tuple[Tensor | None, ...], targets: Tensor, d_nats: Tensor, wanted: list[bool]
) -> list[Tensor | None]:
    """The gradients as a graph (`create_graph=True`), in plain torch: the native backward pass has no derivative."""
    precision, ignored = plain
    # Aliases end the search for gradients here: what these tensors were made from is autograd's to follow.
    aliases: Any = [t.view_as(t) if t is not None and want else t for t, want in zip(tensors, wanted, strict=True)]
    h, weight, bias = aliases
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        nats = plain_linear_cross_entropy(h, weight, bias, targets, ignored)
    leaves = [alias for alias, want in zip(aliases, wanted, strict=True) if want]
    gradients = iter(torch.autograd.grad(nats, leaves, d_nats, create_graph=True))
    return [next(gradients) if want else None for want in wanted]


def plain_linear_cross_entropy(h: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, ignored: int) -> Tensor:
    """The same by PyTorch's own operators: on every device, differentiable any number of times, all logits in memory.

    Raises:
        IndexError: a target is neither one of the V words nor `ignored`.
    """
    logits = functional.linear(h, weight, bias)  # (N, V)
    # Half precision would lose most of a long sum.
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return functional.cross_entropy(precise, targets, ignore_index=ignored, reduction="none")


_operators.impl("linear_cross_entropy", _forward, "CPU")
_operators.impl("linear_cross_entropy_backward", _backward, "CPU")
torch.library.register_fake("throughtime::linear_cross_entropy", _results, lib=_operators)
torch.library.register_fake("throughtime::linear_cross_entropy_backward", _fake_backward, lib=_operators)
torch.library.register_autograd(
    "throughtime::linear_cross_entropy", _differentiate, setup_context=_setup_context, lib=_operators
)
