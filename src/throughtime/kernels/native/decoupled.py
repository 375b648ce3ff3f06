"""h = tanh(b + U x), o = c + V h over many rows that do not wait for each other, their losses and gradients, in C++.

The hidden units of all rows are far more than a cache holds; rows go through in blocks that stay in it from the first
product to the last. Results do not depend on the number of threads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from throughtime.kernels.native import library
from throughtime.kernels.native.memory import kept_memory

_FORMATS = {torch.float32: "float32", torch.float64: "float64"}


class Rows(NamedTuple):
    """What the rows are computed from: x (N, X), U (H, X), b (H), V (O, H), c (O)."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    readout: Tensor
    readout_bias: Tensor

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """N, X, H and O."""
        return (*self.x.shape, *reversed(self.readout.shape))


def refusal(rows: Rows) -> str | None:
    """Why the compiled code does not take such tensors; None where it does."""
    if (reason := library.missing_reason()) is not None:
        return reason
    if not all(tensor.is_cpu and tensor.dtype == rows.x.dtype for tensor in rows) or rows.x.dtype not in _FORMATS:
        kinds = sorted({f"{tensor.dtype} on {tensor.device}" for tensor in rows})
        return f"decoupled steps are native in float32 or float64 on the CPU, got {', '.join(kinds)}"
    plain = all(type(tensor) in (Tensor, torch.nn.Parameter) for tensor in rows)
    if not plain or torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return "native decoupled steps are no operator that torch.compile, subclasses and dispatch modes can follow"
    return None


def forward(rows: Rows) -> tuple[Tensor, Tensor]:
    """o (N, O) and h (N, H)."""
    n, _, units, outputs = rows.sizes
    h, o = kept_memory(rows.x, n, units), kept_memory(rows.x, n, outputs)
    _call(rows, {"h": h, "o": o})
    return o, h


def backward(rows: Rows, d_o: Tensor | None, d_h: Tensor | None, *, of_x: bool) -> tuple[Tensor | None, ...]:
    """The gradients of x (where `of_x`), U, b, V and c, given those of o and h, None for zero."""
    d_o = rows.x.new_zeros(rows.sizes[0], rows.sizes[3]) if d_o is None else d_o
    places = _places(rows, of_x=of_x)
    given = {"d_o": d_o.contiguous()} | ({} if d_h is None else {"d_h": d_h.contiguous()})
    _call(rows, given | places)
    return tuple(places.get(f"d_{name}") for name in Rows._fields)


def losses(
    rows: Rows, targets: Tensor, inside: Tensor | None, *, batch: int, with_gradients: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The losses (N,) in nats of rows that read the target before theirs, and the gradients of the sum of all of them.

    U is (H, X + O): it reads a row's x, and the target of the row `batch` rows before it. Targets are categories (N,)
    below O, with their cross-entropy, or numbers (N, O) of the type of x, with −log N(target; o, 1). Rows that are not
    `inside` (N,) count nothing. The gradients, where they are wanted, are those of U, b, V and c.
    """
    nats = rows.x.new_zeros(len(rows.x))
    places = _places(rows, of_x=False) if with_gradients else {}
    given = {"categories" if targets.dtype == torch.int64 else "numbers": targets.contiguous(), "nats": nats}
    _call(rows, given | ({} if inside is None else {"inside": inside.contiguous()}) | places, batch=batch)
    return nats, tuple(places.values())


def _places(rows: Rows, *, of_x: bool) -> dict[str, Tensor]:
    """Where the gradients go."""
    return {f"d_{name}": torch.empty_like(tensor, memory_format=torch.contiguous_format)
            for name, tensor in rows._asdict().items() if name != "x" or of_x}  # fmt: skip


def _call(rows: Rows, tensors: dict[str, Tensor], *, batch: int = 1) -> None:
    """Hand the addresses over; `held` keeps alive what they point to."""
    held = {name: tensor.detach().contiguous() for name, tensor in rows._asdict().items()} | tensors
    addresses = {name: tensor.data_ptr() for name, tensor in held.items()}
    n, *sizes = rows.sizes
    library.load().decoupled(_FORMATS[rows.x.dtype], (n, batch, *sizes), addresses, torch.get_num_threads())
