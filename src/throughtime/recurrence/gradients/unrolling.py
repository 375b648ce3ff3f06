"""What gradients by step or sequence need of a layer: its parameters, the loss on top of it, and the way back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from throughtime.cells import Cell
from throughtime.errors import EngineError, ShapeError, UsageError
from throughtime.kernels import Recurrence
from throughtime.kernels.native.engine import NativeEngine
from throughtime.recurrence.gradients.copies import parameters_of
from throughtime.recurrence.walk import Place, check_layer

Loss = Callable[..., Tensor]


def learnt_parameters(layer: Any, *, who: str) -> dict[str, Tensor]:
    """The parameters of a `tt.nn` layer or a `tt.Cell` that require a gradient, by name.

    Raises:
        UsageError: `layer` is neither, or its weights are not its parameters at this moment.
    """
    check_layer(layer, who=who)
    cells = [layer, *(module for module in layer.modules() if isinstance(module, Cell))]
    if any(getattr(cell, "family", None) != "custom" and parametrize.is_parametrized(cell) for cell in cells):
        raise UsageError(
            f"{who}: {type(layer).__name__} makes its weights of other parameters; "
            "torch.nn.utils.parametrize.remove_parametrizations(layer, name) makes them parameters again"
        )
    if getattr(layer, "weight_dropout", 0) and layer.training:
        raise UsageError(
            f"{who}: weight_dropout={layer.weight_dropout} puts other weights in the parameters' place while training; "
            "call layer.eval() before, or set weight_dropout=0"
        )
    return {name: parameter for name, parameter in layer.named_parameters() if parameter.requires_grad}


def check_its_own(call: Recurrence, place: Place, learnt: Mapping[str, Tensor], *, who: str) -> None:
    """See that all that a recurrence learns are parameters of the layer that enter this recurrence alone.

    Raises:
        UsageError: a weight is shared with another recurrence, or made of something else; or so is the initial state.
    """
    for name, weight in parameters_of(call.cell).items():
        if learnt.get(place.parameter(name)) is not weight:
            raise UsageError(
                f"{who}: {place.where}: {place.parameter(name)} must be a parameter that is used here alone, got one "
                "that is shared or made of others; give each cell parameters of its own"
            )
    if any(field.requires_grad for field in call.state):
        raise UsageError(
            f"{who}: {place.where} begins with a state made of its parameters, which is of no step; give a state= to "
            "begin with as a constant"
        )


def runs_natively(layer: Any, call: Recurrence) -> bool:
    """Whether the native engine computes the call and knows its equations by heart.

    Raises:
        EngineError: the layer has it by name, and it cannot.
    """
    if call.cell.family == "custom" or layer.engine not in ("auto", "native"):
        return False
    reason = NativeEngine().refusal(call)
    if reason is not None and layer.engine == "native":
        raise EngineError(f"engine='native' cannot run this: {reason}; engine='auto' takes one that can")
    return reason is None


def loss_of(
    outputs: Tensor, final_state: Any, present: Tensor | None, targets_or_loss: Tensor | Loss, *, who: str
) -> Tensor:
    """½ Σ (outputs - targets)² over the outputs that are `present`, or what the given function makes of the outputs.

    Raises:
        ShapeError: targets of another shape than the outputs.
        UsageError: neither targets nor a function; or one whose result is no tensor.
    """
    if isinstance(targets_or_loss, Tensor):
        if targets_or_loss.shape != outputs.shape:
            raise ShapeError(
                f"{who}: targets must be {tuple(outputs.shape)} as the outputs are, got "
                f"{tuple(targets_or_loss.shape)}; a function loss(outputs) compares with others"
            )
        difference = outputs - targets_or_loss
        if present is not None:
            difference = torch.where(present, difference, 0)
        return difference.square().sum() / 2
    if not callable(targets_or_loss):
        got = type(targets_or_loss).__name__
        raise UsageError(f"{who}: expected targets or a function loss(outputs), got {got}")
    given = (outputs, final_state) if _wants_two(targets_or_loss) else (outputs,)
    loss = targets_or_loss(*given)
    if not isinstance(loss, Tensor):
        raise UsageError(f"{who}: loss must return a tensor, got {type(loss).__name__}")
    return loss


def _wants_two(function: Loss) -> bool:
    """Whether it needs a second argument."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some functions written in C do not tell
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in parameters) == 2


def send_back(parameters: Sequence[Tensor], loss: Tensor, *, who: str) -> None:
    """The backward pass from the loss down to a layer's parameters, for those who watch; `.grad` stays as it is.

    Raises:
        UsageError: the loss has nothing to do with the parameters.
    """
    if not loss.requires_grad or not parameters:
        raise UsageError(
            f"{who}: the loss has no gradient: it must be computed from the outputs or the final state, without "
            "detaching them, and some parameter of the layer must require a gradient"
        )
    torch.autograd.grad(loss, parameters, allow_unused=True)


def detached(values: Any) -> Any:
    """A state, whatever its form, cut off from what it was computed from."""
    if isinstance(values, Tensor):
        return values.detach()
    if values is None:
        return None
    fields: Iterator[Any] = (detached(value) for value in values)
    return type(values)(*fields) if hasattr(values, "_fields") else tuple(fields)
