"""Steps that do not wait for each other, all at once: h = tanh(b + U x), o = c + V h over many rows, and their losses.

The hidden units of all steps fill hundreds of MiB, which the processor would read and write several times over, once
for each operation. Here the rows go through in parts that stay in its cache from the first product to the last, in the
backward pass too: in the native engine's own code where it can be had, elsewhere by PyTorch's operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from throughtime.errors import EngineError
from throughtime.kernels.native import decoupled as native

# Numbers of one part of the hidden units: 1 MiB in float32.
_CACHED = 2**18
# Numbers of the gradients of U and V beyond which too few threads could have sums of their own in native code.
_FEW_SUMS = 2**22


def tanh_and_readout(
    x: Tensor, U: Tensor, b: Tensor, V: Tensor, c: Tensor, *, engine: str = "auto"
) -> tuple[Tensor, Tensor]:
    """o (N, O) and h (N, H) of rows x (N, X), U (H, X), b (H,), V (O, H), c (O,); differentiable twice.

    engine: "native", "torch" or another name, which is torch's operations too; "auto": native where that can be.

    Raises:
        EngineError: engine="native" of tensors that the native engine does not take.
    """
    if engine == "native" and (reason := native.refusal(native.Rows(x, U, b, V, c))) is not None:
        raise EngineError(f"engine='native': {reason}; take engine='auto'")
    found: tuple[Tensor, Tensor] = _Rows.apply(engine, x, U, b, V, c)  # type: ignore[no-untyped-call]
    return found


def takes_losses(x: Tensor, targets: Tensor, U: Tensor, b: Tensor, V: Tensor, c: Tensor, *, engine: str) -> bool:
    """Whether `taught_losses` computes them: by native code, and with no gradients but those of the weights."""
    numbers = [x, targets] if targets.is_floating_point() else [x]
    plain = all(tensor.dtype == x.dtype and not tensor.requires_grad for tensor in numbers)
    return plain and _is_native(native.Rows(x.flatten(0, 1), U, b, V, c), engine)


def _is_native(rows: native.Rows, engine: str) -> bool:
    # Of no numbers there is nothing to compute, and no block to do it in.
    if engine not in ("auto", "native") or min(rows.sizes) == 0 or native.refusal(rows) is not None:
        return False
    return engine == "native" or rows.weight.numel() + rows.readout.numel() <= _FEW_SUMS


def _parts(x: Tensor, units: int) -> Iterator[slice]:
    rows = max(1, _CACHED // units) if x.device.type == "cpu" else max(1, len(x))
    for begin in range(0, len(x), rows):
        yield slice(begin, begin + rows)


def _plain(x: Tensor, U: Tensor, b: Tensor, V: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    h = torch.tanh(functional.linear(x, U, b))
    return functional.linear(h, V, c), h


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, engine: str, x: Tensor, U: Tensor, b: Tensor, V: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        rows = native.Rows(x, U, b, V, c)
        ctx.is_native = _is_native(rows, engine)
        if ctx.is_native:
            o, h = native.forward(rows)
        else:
            h, o = x.new_empty(len(x), len(U)), x.new_empty(len(x), len(V))
            for part in _parts(x, len(U)):
                torch.addmm(b, x[part], U.mT, out=h[part]).tanh_()
                torch.addmm(c, h[part], V.mT, out=o[part])
        # Native code computes h once more, which takes about as long as reading it, and no memory.
        ctx.save_for_backward(x, U, b, V, c, *([] if ctx.is_native else [h]))
        ctx.set_materialize_grads(False)
        return o, h

    @staticmethod
    def backward(ctx: Any, d_o: Tensor | None, d_h: Tensor | None) -> tuple[Tensor | None, ...]:
        x, U, b, V, c, *rest = ctx.saved_tensors
        if d_o is None and d_h is None:
            return (None,) * 6
        if torch.is_grad_enabled():
            inputs = [x, U, b, V, c]
            wanted = [tensor for tensor in inputs if tensor.requires_grad]
            pairs = [(y, d) for y, d in zip(_plain(*inputs), (d_o, d_h), strict=True) if d is not None]
            ends, of_ends = zip(*pairs, strict=True)
            found = iter(torch.autograd.grad(ends, wanted, of_ends, create_graph=True, allow_unused=True))
            return (None, *(next(found) if tensor.requires_grad else None for tensor in inputs))
        of_x = ctx.needs_input_grad[1]
        if ctx.is_native:
            return (None, *native.backward(native.Rows(x, U, b, V, c), d_o, d_h, of_x=of_x))
        (h,) = rest
        d_x = torch.empty_like(x) if of_x else None
        d_U, d_b, d_V, d_c = (torch.zeros_like(tensor) for tensor in (U, b, V, c))
        for part in _parts(x, len(U)):
            if d_o is None:
                assert d_h is not None
                of_h = d_h[part]
            else:
                of_h = d_o[part] @ V  # (n, H)
                of_h = of_h if d_h is None else of_h.add_(d_h[part])
                d_V.addmm_(d_o[part].mT, h[part])
                d_c += d_o[part].sum(0)
            of_a = torch.ops.aten.tanh_backward(of_h, h[part])
            d_U.addmm_(of_a.mT, x[part])
            d_b += of_a.sum(0)
            if d_x is not None:
                torch.mm(of_a, U, out=d_x[part])
        return None, d_x, d_U, d_b, d_V, d_c


def taught_losses(
    x: Tensor,
    targets: Tensor,
    inside: Tensor | None,
    U: Tensor,
    b: Tensor,
    V: Tensor,
    c: Tensor,
    *,
    otherwise: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """L(t) (T, B) of steps that read x(t) (T, B, I) and the target y(t-1), where `takes_losses` allows it.

    Targets are categories (T, B) below O, or numbers (T, B, O) as a Gaussian of unit variance has them; steps that are
    not `inside` (T, B) count nothing. U is (H, I + O), b (H,), V (O, H), c (O,).

    The gradients of the losses' sum are computed in the same pass, while everything stands in the cache; the backward
    pass only scales them. Where the losses turn out to have gradients that differ, as weights of sequences have it,
    or where the gradient is to be differentiated itself, all is computed once more, by `otherwise`: the same losses
    from U, b, V and c by differentiable operations.
    """
    wanted = torch.is_grad_enabled() and any(weight.requires_grad for weight in (U, b, V, c))
    losses: Tensor = _TaughtLosses.apply(  # type: ignore[no-untyped-call]
        x, targets, inside, otherwise, wanted, U, b, V, c
    )
    return losses


class _TaughtLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        targets: Tensor,
        inside: Tensor | None,
        otherwise: Callable[..., Tensor],
        wanted: bool,
        *weights: Tensor,
    ) -> Tensor:
        losses, gradients = native.losses(
            native.Rows(x.flatten(0, 1), *weights),
            targets.flatten(0, 1),
            None if inside is None else inside.flatten(),
            batch=x.shape[1],
            with_gradients=wanted,
        )
        ctx.inside, ctx.otherwise = inside, otherwise
        ctx.save_for_backward(*weights, *gradients)
        return losses.reshape(targets.shape[:2])

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        weights, gradients = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        if not torch.is_grad_enabled() and (scale := _the_same(d, ctx.inside)) is not None:
            return (None,) * 5 + tuple(gradient * scale for gradient in gradients)
        with torch.enable_grad():
            losses = ctx.otherwise(*weights)
        wanted = [weight for weight in weights if weight.requires_grad]
        found = iter(torch.autograd.grad(losses, wanted, d, create_graph=torch.is_grad_enabled(), allow_unused=True))
        return (None,) * 5 + tuple(next(found) if weight.requires_grad else None for weight in weights)


def _the_same(d: Tensor, inside: Tensor | None) -> Tensor | None:
    """The number that all of d, where it is `inside`, is; None where there are several."""
    if not any(d.stride()) and d.numel():  # one number expanded, as that of a sum is
        return d.flatten()[0]
    counted = d.flatten() if inside is None else d[inside]
    if counted.numel() == 0:
        return counted.sum()
    low, high = counted.aminmax()
    return low if low == high else None
