"""Second derivatives for kernels that have a first one only.

A backward pass that is itself to be differentiated (`create_graph=True`) is computed on the reference path instead, so
that it works for every layer in every mode.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from throughtime.kernels.recurrence import Recurrence, Unfolded
from throughtime.kernels.reference import ReferenceEngine

Run = Callable[[Recurrence], Unfolded]
Rebuild = Callable[[Sequence[Tensor | None]], Recurrence]


def differentiable_twice(call: Recurrence, run: Run) -> Unfolded:
    """What `run`, a fused kernel, makes of the call, with derivatives of every order."""
    tensors = differentiable_tensors(call)
    if not torch.is_grad_enabled() or not any(t is not None and t.requires_grad for t in tensors):
        return run(call)
    # How the results are grouped is learnt in the forward pass: autograd passes flat tuples.
    groups: list[Unfolded] = []
    results = _Twice.apply(call, run, groups, *tensors)  # type: ignore[no-untyped-call]
    return grouped(results, groups[0])


class _Twice(torch.autograd.Function):
    """A fused kernel whose backward pass, where it is to be differentiated itself, is the reference path's."""

    @staticmethod
    def forward(
        ctx: Any, call: Recurrence, run: Run, groups: list[Unfolded], *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*tensors)
        # Tensors are autograd's to keep, to free and to guard against changes in place.
        ctx.rebuild = rebuilder(call)
        ctx.run = run
        ctx.autocast = autocast_now(call.inputs.device.type)
        ctx.leaves, unfolded = _on_leaves(ctx.rebuild, tensors, run)
        groups.append(unfolded)
        ctx.results = flat(unfolded)
        ctx.set_materialize_grads(False)
        return tuple(result.detach() for result in ctx.results)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        if torch.is_grad_enabled():
            with ctx.autocast():
                return (None, None, None, *reference_gradients(ctx.rebuild, tensors, gradients))
        if ctx.results is None:  # a second plain backward over a kept graph
            with ctx.autocast():
                ctx.leaves, unfolded = _on_leaves(ctx.rebuild, tensors, ctx.run)
                ctx.results = flat(unfolded)
        leaves, results = ctx.leaves, ctx.results
        # The kernel's workspace goes as soon as autograd's own buffers would.
        ctx.leaves = ctx.results = None
        return (None, None, None, *_gradients(leaves, results, gradients, create_graph=False))


def reference_gradients(
    rebuild: Rebuild, tensors: Sequence[Tensor | None], gradients: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The gradients of a call's tensors by way of the reference path, to be differentiated further.

    `gradients` are those of the flat results.
    """
    # Aliases end the search for gradients here: where one of these tensors was made from another (the state from the
    # same weights, in an earlier call), that path is autograd's to follow, and to count once.
    leaves = [t if t is None or not t.requires_grad else t.view_as(t) for t in tensors]
    results = flat(ReferenceEngine().run(rebuild(leaves)))
    return _gradients(leaves, results, gradients, create_graph=True)


def _gradients(
    leaves: Sequence[Tensor | None], results: Sequence[Tensor], gradients: Sequence[Tensor | None], create_graph: bool
) -> list[Tensor | None]:
    wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    pairs = [(r, g) for r, g in zip(results, gradients, strict=True) if g is not None and r.requires_grad]
    if not pairs:
        return [None for _ in leaves]
    found = iter(
        torch.autograd.grad(
            [result for result, _ in pairs],
            wanted,
            [gradient for _, gradient in pairs],
            create_graph=create_graph,
            allow_unused=True,
        )
    )
    return [next(found) if leaf is not None and leaf.requires_grad else None for leaf in leaves]


def _on_leaves(rebuild: Rebuild, tensors: Any, run: Run) -> tuple[list[Tensor | None], Unfolded]:
    """Run on detached leaves, with a graph of its own from the leaves to the results."""
    leaves = [None if t is None else t.detach().requires_grad_(t.requires_grad) for t in tensors]
    with torch.enable_grad():
        return leaves, run(rebuild(leaves))


def autocast_now(device_type: str) -> Callable[[], AbstractContextManager[Any]]:
    """The autocast in force, to be entered again in the backward pass, which runs outside of it."""
    if not torch.amp.is_autocast_available(device_type):  # the meta device
        return nullcontext
    enabled, dtype = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    return lambda: torch.autocast(device_type, dtype=dtype, enabled=enabled)


def differentiable_tensors(call: Recurrence) -> list[Tensor | None]:
    """Everything of the call that may need a gradient: inputs, state fields, weights."""
    cell: Any = call.cell
    return [call.inputs, *call.state, *cell.weights]


def rebuilder(call: Recurrence) -> Rebuild:
    """What makes the call anew on other `differentiable_tensors`, in their order, and holds on to none."""
    cell: Any = call.cell
    of_cell = {name: getattr(cell, name) for name in _beside(cell.__class__, "weights")}
    of_call = {name: getattr(call, name) for name in _beside(Recurrence, "cell", "inputs", "state", "lookup")}
    cell_type, weights_type, state_type, count = type(cell), type(cell.weights), type(call.state), len(call.state)

    def rebuild(tensors: Sequence[Tensor | None]) -> Recurrence:
        inputs: Any
        inputs, *rest = tensors
        of_weights = weights_type(*rest[count:])
        return Recurrence(cell_type(weights=of_weights, **of_cell), inputs, state_type(*rest[:count]), **of_call)

    return rebuild


@functools.cache
def _beside(kind: Any, *left_out: str) -> tuple[str, ...]:
    """The names of a dataclass's other fields."""
    return tuple(field.name for field in fields(kind) if field.name not in left_out)


def flat(unfolded: Unfolded) -> tuple[Tensor, ...]:
    """Its tensors one after another."""
    return (unfolded.outputs, *unfolded.final_state, *(unfolded.states or ()), *(unfolded.gates or ()))


def grouped(results: tuple[Tensor, ...], like: Unfolded) -> Unfolded:
    """Flat results in the groups of `like`."""
    rest = iter(results[1:])
    return Unfolded(
        results[0],
        *(group if group is None else type(group)(*(next(rest) for _ in group)) for group in like[1:]),
    )
