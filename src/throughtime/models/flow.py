"""How gradients flow back through the recurrent layers of a model, from its own loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.errors import UsageError
from throughtime.layers import in_evaluation_mode
from throughtime.recurrence.flow import Flow, measure
from throughtime.recurrence.jacobians import links


def model_flow(
    model: nn.Module,
    *arguments: Any,
    at: int | Sequence[int] = 16,
    max_lag: int | None = None,
    jacobians: int = 0,
    seed: int = 0,
    **keywords: Any,
) -> Flow:
    """Measure how the gradients of a model's loss flow back through `model.recurrent`, in evaluation mode.

    Args:
        model: one that runs its recurrent layers once over whole sequences, as every design does when it is taught.
        arguments: what the model is called with, `targets=` among them, so that it returns its losses.
        at: which losses: how many, evenly spaced over time up to the last step, or the very t, counted from 0. Of a
            model with one loss for a whole sequence, L(t) is what reaches the layer's outputs at step t directly, and
            steps that nothing reaches directly do not count.
        max_lag: the longest lag; when missing, as far as t reaches.
        jacobians: how many leading singular values of ∂h(t)/∂h(t-k) to find, at lags 1, 2, 4, …
        seed: of the vectors by which they are found.
        keywords: the rest of the call.

    Raises:
        UsageError: a model without recurrent layers, one that takes their steps one by one, or a bidirectional one.
    """
    who = type(model).__name__
    layer = getattr(model, "recurrent", None)
    if not hasattr(layer, "recurrences"):
        raise UsageError(f"flow: {who} has no recurrent layers of tt.nn; give a layer or a cell itself")
    assert isinstance(layer, nn.Module)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    leaves: list[Tensor] = []

    def cut(_: nn.Module, given: tuple[Any, ...], options: dict[str, Any], results: Any) -> Any:
        """Remember the call, and let gradients come as far as the layer's outputs."""
        outputs, *rest = results
        calls.append((given, options))
        leaves.append(outputs.detach().requires_grad_())
        return (leaves[-1], *rest)

    handle = layer.register_forward_hook(cut, with_kwargs=True)
    try:
        with in_evaluation_mode(model), torch.enable_grad():
            found = model(*arguments, **keywords)
            losses = found if isinstance(found, Tensor) else found[0]
            if len(calls) != 1:
                raise UsageError(
                    f"flow: {who} must run its recurrent layers once over whole sequences, it ran them {len(calls)} "
                    "times; give targets, so that it does not run freely (design B has no such layers to run)"
                )
            (d_outputs,) = torch.autograd.grad(losses.sum(), leaves[0])
    finally:
        handle.remove()
    ((x, *given), options), generator = calls[0], torch.Generator().manual_seed(seed)
    options.pop("lookup", None)  # where x comes from, which is of no interest here
    # Autocast, which may have made x shorter, ends with the model's own call.
    x = x.detach().to(next(layer.parameters()).dtype)
    with in_evaluation_mode(model):
        chain = links(layer, x, *given, **options)
        return measure(layer, chain, d_outputs, at=at, max_lag=max_lag, jacobians=jacobians, generator=generator)
