"""The recurrences of the native engine as PyTorch operators, `torch.ops.throughtime.recurrence` and its backward pass.

As operators, with shapes known ahead (fake tensors) and a registered derivative, they are met as one node by
`torch.compile`, `torch.export`, DDP, checkpointing and autocast.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from throughtime.errors import EngineError
from throughtime.kernels.native import library
from throughtime.kernels.native.arguments import Arguments
from throughtime.kernels.native.memory import kept_memory

_SIGNATURE = (
    "str cell, str precision, bool reverse, Tensor inputs, Tensor weight_ih, Tensor weight_hh, Tensor? weight_hr, "
    "Tensor? bias_ih, Tensor? bias_hh, Tensor? weight_peephole, Tensor h_first, Tensor? c_first, Tensor? lengths, "
    "Tensor? resets, Tensor? recurrent_mask, Tensor? zoneout_h, Tensor? zoneout_c"
)
_operators: Any = torch.library.Library("throughtime", "FRAGMENT")  # type: ignore[no-untyped-call]
_operators.define(
    f"recurrence({_SIGNATURE}, bool keep) -> "
    "(Tensor outputs, Tensor h_last, Tensor c_last, Tensor saved, Tensor cells)",
    tags=torch.Tag.needs_exact_strides,
)
_operators.define(
    f"recurrence_backward({_SIGNATURE}, Tensor outputs, Tensor saved, Tensor cells, Tensor? d_outputs, "
    "Tensor? d_h_last, Tensor? d_c_last, Tensor? d_saved, Tensor? d_cells, bool[] wanted) -> "
    "(Tensor d_inputs, Tensor d_weight_ih, Tensor d_weight_hh, Tensor d_weight_hr, Tensor d_bias_ih, Tensor d_bias_hh, "
    "Tensor d_weight_peephole, Tensor d_h_first, Tensor d_c_first)",
    tags=torch.Tag.needs_exact_strides,
)

# The arguments that have gradients, in the order of the operator's; `wanted` says for which they are wanted.
DIFFERENTIABLE = (
    "inputs",
    "weight_ih",
    "weight_hh",
    "weight_hr",
    "bias_ih",
    "bias_hh",
    "weight_peephole",
    "h_first",
    "c_first",
)


# Outputs (T, B, P), h (B, P) and c (B, H) after the last step, what is saved, the cells. What there is none of is None
# or, from an operator, which hands out nothing but tensors, an empty one.
Results = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


def recurrence(arguments: Arguments, keep: bool) -> Results:
    """Run one direction of one layer.

    With `keep`, `saved` (T, B, S · H) and, for an LSTM, `cells` (T, B, H) hold what the backward pass needs: i, f, g,
    o; r, z, n and W_n h + b_hn; or h.
    """
    if not torch.is_grad_enabled() and nobody_watches(arguments.inputs):
        return run_forward(arguments, keep, {})
    results: Results = torch.ops.throughtime.recurrence(*arguments, keep)
    return results


_PLAIN_TENSORS = {Tensor, torch.nn.Parameter}


def nobody_watches(*tensors: Tensor) -> bool:
    """Whether an operator on these would be seen by nobody but autograd on its way through PyTorch's dispatcher.

    That way takes a fifth of a millisecond with cold caches, as long as a hundred steps of a small layer.
    """
    return not (
        torch.compiler.is_compiling()
        or not _PLAIN_TENSORS.issuperset(map(type, tensors))
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._autograd._profiler_enabled()
    )


def recurrence_backward(
    arguments: Arguments,
    outputs: Tensor,
    saved: Tensor,
    cells: Tensor | None,
    gradients: tuple[Tensor | None, ...],
    wanted: list[bool],
) -> dict[str, Tensor]:
    """Gradients of those of `DIFFERENTIABLE` that are wanted, by name, given those of the results.

    `gradients` has one for each of what `recurrence` returns, None for zero.
    """
    if not torch.is_grad_enabled() and nobody_watches(arguments.inputs):
        return run_backward(arguments, (outputs, saved, cells), gradients, wanted, {})
    results = (outputs, saved, outputs.new_empty(0) if cells is None else cells)
    found = torch.ops.throughtime.recurrence_backward(*arguments, *results, *gradients, wanted)
    return {name: gradient for name, gradient, want in zip(DIFFERENTIABLE, found, wanted, strict=True) if want}


class Deltas(NamedTuple):
    """Gradients of every step by itself, zero behind a sequence's length.

    `sums` (T, B, S · H): of the summed inputs, a slot for each gate that sees x; for a "gru" the last slot is that of
    W_n h + b_hn, for an "lstm_projected" that of h, P values. `h` (T, B, P) and, for an LSTM, `c` (T, B, H): of the
    state, by every way that it has to the loss.
    """

    sums: Tensor
    h: Tensor
    c: Tensor | None


def recurrence_deltas(
    arguments: Arguments,
    outputs: Tensor,
    saved: Tensor,
    cells: Tensor | None,
    gradients: tuple[Tensor | None, ...],
    wanted: list[bool],
) -> tuple[dict[str, Tensor], Deltas]:
    """As `recurrence_backward`, and what it sums over time besides.

    Raises:
        EngineError: the compiled code is older than this, and does not hand it out.
    """
    _check_hands_out_deltas(library.load())
    new = Tensor.new_zeros if arguments.lengths is not None else kept_memory
    deltas = Deltas(
        new(saved, *saved.shape),
        new(outputs, *outputs.shape),
        new(cells, *cells.shape) if cells is not None and arguments.c_first is not None else None,
    )
    named = {"d_sums": deltas.sums, "d_states": deltas.h, "d_cells_of_steps": deltas.c}
    places = {name: place for name, place in named.items() if place is not None}
    return run_backward(arguments, (outputs, saved, cells), gradients, wanted, places), deltas


@functools.cache
def _check_hands_out_deltas(module: Any) -> None:
    """See that the compiled code writes what it is given places for: it passes over names that it does not know.

    Raises:
        EngineError: it does not.
    """
    one = torch.ones(1, 1, 1, dtype=torch.float32, device="cpu")
    arguments = Arguments("rnn_tanh", "float32", False, one, one[0], one[0], *(None,) * 4, one[0], *(None,) * 6)
    deltas = {name: torch.full_like(one, torch.nan) for name in ("d_sums", "d_states")}
    _call(
        module.backward, arguments, arguments.contiguous() | {"outputs": one, "saved": one, "d_outputs": one} | deltas
    )
    if any(bool(delta.isnan()) for delta in deltas.values()):
        raise EngineError(
            f"native engine: {module.__name__} is older than throughtime's Python code and hands out no gradients by "
            "step; build it again, or take engine='reference'"
        )


def _empty(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape)


def _results(arguments: Arguments, keep: bool, new: Callable[..., Tensor]) -> Results:
    """Where the results will stand. Behind the lengths of a ragged batch nothing is written: it is zero already."""
    steps, batch, _, units, state = arguments.sizes
    inputs = arguments.inputs
    ragged = Tensor.new_zeros if arguments.lengths is not None else new
    lstm = arguments.c_first is not None
    return (
        ragged(inputs, steps, batch, state),
        inputs.new_empty(batch, state),
        inputs.new_empty(batch, units) if lstm else None,
        ragged(inputs, steps, batch, arguments.saved_values * units) if keep else None,
        ragged(inputs, steps, batch, units) if keep and lstm else None,
    )


def _as_tensors(like: Tensor, found: Iterable[Tensor | None]) -> tuple[Tensor, ...]:
    """As an operator hands them out."""
    return tuple(like.new_empty(0) if tensor is None else tensor for tensor in found)


def _forward(*given: Any) -> tuple[Tensor, ...]:
    *first, keep = given
    arguments = Arguments(*first)
    return _as_tensors(arguments.inputs, run_forward(arguments, keep, {}))


def run_forward(arguments: Arguments, keep: bool, places: dict[str, Tensor]) -> Results:
    """`recurrence` past the dispatcher; `places` has what else the kernel reads, by name."""
    results = outputs, h_last, c_last, saved, cells = _results(arguments, keep, kept_memory)
    tensors = arguments.contiguous() | places
    if saved is None and arguments.cell in ("lstm_projected", "gru_before"):
        # A step of two products hands its middle on in what is saved.
        steps, batch, _, units, _ = arguments.sizes
        saved = kept_memory(outputs, steps, batch, arguments.saved_values * units)
    written = {"outputs": outputs, "h_last": h_last, "c_last": c_last, "saved": saved, "cells": cells}
    tensors |= {name: tensor for name, tensor in written.items() if tensor is not None}
    _call(library.load().forward, arguments, tensors)
    return results


def _gradients(arguments: Arguments, wanted: list[bool], new: Callable[..., Tensor]) -> dict[str, Tensor]:
    """Where the gradients that are wanted will stand, by name."""
    gradients = {}
    for name, want in zip(DIFFERENTIABLE, wanted, strict=True):
        if want and (given := getattr(arguments, name)) is not None:
            zeros = name == "inputs" and arguments.lengths is not None
            gradients[name] = given.new_zeros(given.shape) if zeros else new(given, *given.shape)
    return gradients


def _backward(*given: Any) -> tuple[Tensor, ...]:
    count = len(Arguments._fields)
    arguments = Arguments(*given[:count])
    outputs, saved, cells, *gradients, wanted = given[count:]
    found = run_backward(arguments, (outputs, saved, cells), tuple(gradients), wanted, {})
    return _as_tensors(outputs, map(found.get, DIFFERENTIABLE))


def run_backward(
    arguments: Arguments,
    results: tuple[Tensor, Tensor, Tensor | None],
    of_results: tuple[Tensor | None, ...],
    wanted: list[bool],
    places: dict[str, Tensor],
) -> dict[str, Tensor]:
    """`recurrence_backward` past the dispatcher; `places` has what else the kernel reads and writes, by name."""
    outputs, saved, cells = results
    # Hooks on saved tensors may hand them back in another layout.
    tensors = arguments.contiguous() | {"outputs": outputs.contiguous(), "saved": saved.contiguous()}
    if cells is not None and arguments.c_first is not None:
        tensors["cells"] = cells.contiguous()
    incoming = zip(("d_outputs", "d_h_last", "d_c_last", "d_saved", "d_cells"), of_results, strict=True)
    tensors |= {name: gradient.contiguous() for name, gradient in incoming if gradient is not None}
    tensors |= places
    gradients = _gradients(arguments, wanted, kept_memory)
    tensors |= {f"d_{name}": gradient for name, gradient in gradients.items()}
    _call(library.load().backward, arguments, tensors)
    return gradients


def _call(function: Any, arguments: Arguments, tensors: dict[str, Tensor]) -> None:
    """Hand the addresses over. `tensors` keeps alive what they point to."""
    threads = 1 if arguments.is_small else torch.get_num_threads()
    addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    function(arguments.cell, arguments.precision, arguments.sizes, arguments.reverse, addresses, threads)


def _fake_forward(*given: Any) -> tuple[Tensor, ...]:
    *first, keep = given
    arguments = Arguments(*first)
    return _as_tensors(arguments.inputs, _results(arguments, keep, _empty))


def _fake_backward(*given: Any) -> tuple[Tensor, ...]:
    arguments = Arguments(*given[: len(Arguments._fields)])
    return _as_tensors(arguments.inputs, map(_gradients(arguments, given[-1], _empty).get, DIFFERENTIABLE))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *first, _ = inputs
    arguments = Arguments(*first)
    outputs, _, _, saved, cells = output
    ctx.plain = arguments[:3]
    ctx.save_for_backward(*arguments[3:], outputs, saved, cells)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    *first, outputs, saved, cells = ctx.saved_tensors
    arguments = Arguments(*ctx.plain, *first)
    wanted = [ctx.needs_input_grad[Arguments._fields.index(name)] for name in DIFFERENTIABLE]
    if not any(wanted) or all(gradient is None for gradient in gradients):
        return (None,) * (len(Arguments._fields) + 1)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise EngineError(
            "torch.ops.throughtime.recurrence: its gradient cannot be differentiated again; "
            "tt.nn layers and tt.unfold take another path for that"
        )
    found = recurrence_backward(arguments, outputs, saved, cells, gradients, wanted)
    return (*(found.get(name) for name in Arguments._fields), None)


_operators.impl("recurrence", _forward, "CPU")
_operators.impl("recurrence_backward", _backward, "CPU")
torch.library.register_fake("throughtime::recurrence", _fake_forward, lib=_operators)
torch.library.register_fake("throughtime::recurrence_backward", _fake_backward, lib=_operators)
torch.library.register_autograd("throughtime::recurrence", _differentiate, setup_context=_setup_context, lib=_operators)
