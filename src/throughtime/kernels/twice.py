"""Second derivatives for kernels that have a first one only.

A backward pass that is itself to be differentiated (`create_graph=True`) is computed on the reference path instead, so
that it works for every layer in every mode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from throughtime.kernels.recurrence import Recurrence, Unfolded
from throughtime.kernels.reference import ReferenceEngine

Run = Callable[[Recurrence], Unfolded]


def differentiable_twice(call: Recurrence, run: Run) -> Unfolded:
    """What `run`, a fused kernel, makes of the call, with derivatives of every order."""
    tensors = differentiable_tensors(call)
    if not torch.is_grad_enabled() or not any(t is not None and t.requires_grad for t in tensors):
        return run(call)
    # How the results are grouped is learnt in the forward pass: autograd passes flat tuples.
    groups: list[Unfolded] = []
    results = _Twice.apply(call, run, groups, *tensors)  # type: ignore[no-untyped-call]
    return _grouped(results, groups[0])


class _Twice(torch.autograd.Function):
    """A fused kernel whose backward pass, where it is to be differentiated itself, is the reference path's."""

    @staticmethod
    def forward(
        ctx: Any, call: Recurrence, run: Run, groups: list[Unfolded], *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*tensors)
        # Tensors are autograd's to keep, to free and to guard against changes in place: here are only their shapes.
        ctx.call = _with_tensors(call, [None if t is None else torch.empty_like(t, device="meta") for t in tensors])
        ctx.run = run
        ctx.autocast = _autocast_now(call.inputs.device.type)
        ctx.leaves, unfolded = _on_leaves(call, tensors, run)
        groups.append(unfolded)
        ctx.results = _flat(unfolded)
        ctx.set_materialize_grads(False)
        return tuple(result.detach() for result in ctx.results)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        twice = torch.is_grad_enabled()
        tensors = ctx.saved_tensors
        if twice:
            # Aliases end the search for gradients here: where one of these tensors was made from another (the state
            # from the same weights, in an earlier call), that path is autograd's to follow, and to count once.
            leaves = [t if t is None or not t.requires_grad else t.view_as(t) for t in tensors]
            with ctx.autocast():
                results = _flat(ReferenceEngine().run(_with_tensors(ctx.call, leaves)))
        else:
            if ctx.results is None:  # a second plain backward over a kept graph
                with ctx.autocast():
                    ctx.leaves, unfolded = _on_leaves(ctx.call, tensors, ctx.run)
                    ctx.results = _flat(unfolded)
            leaves, results = ctx.leaves, ctx.results
            # The kernel's workspace goes as soon as autograd's own buffers would.
            ctx.leaves = ctx.results = None
        wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
        pairs = [(r, g) for r, g in zip(results, gradients, strict=True) if g is not None and r.requires_grad]
        if not pairs:
            return (None, None, None, *[None for _ in leaves])
        found = iter(
            torch.autograd.grad(
                [result for result, _ in pairs],
                wanted,
                [gradient for _, gradient in pairs],
                create_graph=twice,
                allow_unused=True,
            )
        )
        of_leaves = [next(found) if leaf is not None and leaf.requires_grad else None for leaf in leaves]
        return (None, None, None, *of_leaves)


def _on_leaves(call: Recurrence, tensors: Any, run: Run) -> tuple[list[Tensor | None], Unfolded]:
    """Run on detached leaves, with a graph of its own from the leaves to the results."""
    leaves = [None if t is None else t.detach().requires_grad_(t.requires_grad) for t in tensors]
    with torch.enable_grad():
        return leaves, run(_with_tensors(call, leaves))


def _autocast_now(device_type: str) -> Callable[[], torch.autocast]:
    """The autocast in force, to be entered again in the backward pass, which runs outside of it."""
    enabled, dtype = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    return lambda: torch.autocast(device_type, dtype=dtype, enabled=enabled)


def differentiable_tensors(call: Recurrence) -> list[Tensor | None]:
    """Everything of the call that may need a gradient: inputs, state fields, weights."""
    cell: Any = call.cell
    return [call.inputs, *call.state, *cell.weights]


def _with_tensors(call: Recurrence, tensors: Any) -> Recurrence:
    """The same call on other tensors, in the order of `differentiable_tensors`."""
    cell: Any = call.cell
    inputs, *rest = tensors
    fields = len(call.state)
    weights = type(cell.weights)(*rest[fields:])
    return replace(call, inputs=inputs, state=type(call.state)(*rest[:fields]), cell=replace(cell, weights=weights))


def _flat(unfolded: Unfolded) -> tuple[Tensor, ...]:
    return (unfolded.outputs, *unfolded.final_state, *(unfolded.states or ()), *(unfolded.gates or ()))


def _grouped(results: tuple[Tensor, ...], like: Unfolded) -> Unfolded:
    """Flat results in the groups of `like`."""
    rest = iter(results[1:])
    return Unfolded(
        results[0],
        *(group if group is None else type(group)(*(next(rest) for _ in group)) for group in like[1:]),
    )
