"""A layer or a cell over a batch with each of its recurrences run as one asks; and the loss on top."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from throughtime.cells import Cell
from throughtime.errors import EngineError, ShapeError, UsageError
from throughtime.kernels import Recurrence, Unfolded
from throughtime.kernels.native.engine import NativeEngine
from throughtime.recurrence.lengths import checked_lengths

Loss = Callable[..., Tensor]


class Place(NamedTuple):
    """Where a recurrence stands."""

    layer: int
    direction: int


class Unrolled(NamedTuple):
    """What a layer returns, in its own layout; which outputs are there, true up to each sequence's length; and B."""

    outputs: Tensor
    final_state: Any
    present: Tensor | None
    rows: int


Run = Callable[[Recurrence, Place], Unfolded]


def learnt_parameters(layer: Any, *, who: str) -> dict[str, Tensor]:
    """The parameters of a `tt.nn` layer or a `tt.Cell` that require a gradient, by name.

    Raises:
        UsageError: `layer` is neither, or its weights are not its parameters.
    """
    if not isinstance(layer, Cell) and not hasattr(layer, "_layer_calls"):
        raise UsageError(
            f"{who}: expected a tt.nn layer or a tt.Cell, got {type(layer).__name__}; "
            "tt.nn.replace_torch_layers(module) makes tt.nn layers of torch's"
        )
    if getattr(layer, "family", None) != "custom" and parametrize.is_parametrized(layer):
        raise UsageError(
            f"{who}: {type(layer).__name__} makes its weights of other parameters; "
            "torch.nn.utils.parametrize.remove_parametrizations(layer, name) makes them parameters again"
        )
    return {name: parameter for name, parameter in layer.named_parameters() if parameter.requires_grad}


def unroll(layer: Any, inputs: Tensor, state: Any, lengths: Any, run: Run, *, who: str) -> Unrolled:
    """A `tt.nn` layer or a `tt.Cell` over the inputs, `run` computing each recurrence.

    Raises:
        UsageError: `layer` makes other weights of its parameters at every call.
        ShapeError: inputs, state or lengths that do not fit.
    """
    if isinstance(layer, Cell):
        call = layer.recurrence(inputs, state)
        call = replace(call, lengths=checked_lengths(lengths, inputs, who=type(layer).__name__))
        outputs, final, *_ = run(call, Place(0, 0))
        return Unrolled(outputs, final, _present(inputs, call.lengths), inputs.shape[1])
    return _unroll_layers(layer, inputs, state, lengths, run, who)


def _unroll_layers(layer: Any, inputs: Tensor, state: Any, lengths: Any, run: Run, who: str) -> Unrolled:
    """What `RecurrentLayer.forward` does."""
    if layer.weight_dropout and layer.training:
        raise UsageError(
            f"{who}: weight_dropout={layer.weight_dropout} puts other weights in the parameters' place while training; "
            "call layer.eval() before, or set weight_dropout=0"
        )
    x, lengths, _ = layer._time_major(inputs, lengths, None)
    batched = inputs.dim() == 3
    initial = layer._initial_states(x, state, batched)
    finals = []
    for index in range(layer.num_layers):
        calls = layer._layer_calls(index, x, initial[index], lengths, None, record=False)
        found = [run(call, Place(index, direction)) for direction, call in enumerate(calls)]
        x = layer._between(index, x, torch.cat([unfolded.outputs for unfolded in found], -1))
        finals.append([unfolded.final_state for unfolded in found])
    present = _present(x, lengths)
    final = _joined(finals, equal_sizes=len(set(layer.hidden_sizes)) == 1, batched=batched)
    present = None if present is None else layer._as_given(present, batched)
    return Unrolled(layer._as_given(x, batched), final, present, x.shape[1])


def _present(x: Tensor, lengths: Tensor | None) -> Tensor | None:
    """True up to each sequence's length: (T, B, 1)."""
    return None if lengths is None else (torch.arange(len(x), device=x.device)[:, None] < lengths)[..., None]


def _joined(states: Sequence[Sequence[Any]], *, equal_sizes: bool, batched: bool) -> Any:
    """The states of every [layer][direction] as the layer returns them."""
    joined = []
    for index in range(len(states[0][0])):
        layers = [torch.stack([state[index] for state in directions]) for directions in states]  # (D, B, size)
        layers = layers if batched else [layer.squeeze(1) for layer in layers]
        joined.append(torch.cat(layers) if equal_sizes else tuple(layers))
    return joined[0] if len(joined) == 1 else tuple(joined)


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


def loss_of(unrolled: Unrolled, targets_or_loss: Tensor | Loss, *, who: str) -> Tensor:
    """½ Σ (outputs - targets)² over the outputs that are there, or what the given function makes of the outputs.

    Raises:
        ShapeError: targets of another shape than the outputs.
        UsageError: neither targets nor a function; or one whose result is no tensor.
    """
    outputs = unrolled.outputs
    if isinstance(targets_or_loss, Tensor):
        if targets_or_loss.shape != outputs.shape:
            raise ShapeError(
                f"{who}: targets must be {tuple(outputs.shape)} as the outputs are, got "
                f"{tuple(targets_or_loss.shape)}; a function loss(outputs) compares with others"
            )
        difference = outputs - targets_or_loss
        if unrolled.present is not None:
            difference = torch.where(unrolled.present, difference, 0)
        return difference.square().sum() / 2
    if not callable(targets_or_loss):
        got = type(targets_or_loss).__name__
        raise UsageError(f"{who}: expected targets or a function loss(outputs), got {got}")
    given = (outputs, unrolled.final_state) if _wants_two(targets_or_loss) else (outputs,)
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
