"""A recurrence in pieces: each segment of its steps run by itself, from given tensors, on the engine of the whole.

The pieces of one call have the same random numbers whenever they are run: masks are part of the call, and what a cell
of one's own draws within its step is drawn anew from the generators as they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from throughtime import kernels
from throughtime.errors import UsageError
from throughtime.kernels import Recurrence, Unfolded
from throughtime.kernels.twice import autocast_now, differentiable_tensors, flat, rebuilder

Span = tuple[int, int]  # of time steps: the first, and the one behind the last


class Snapshot(NamedTuple):
    """The state before a segment, and the random generators' as they were there."""

    state: tuple[Tensor, ...]
    generators: tuple[Tensor, ...]


class Pieces:
    """A `Recurrence` without its differentiable tensors, to be run piece by piece on these or on others.

    The tensors are the inputs, the fields of the state, and all weights: autograd's to keep, to free and to guard.
    """

    def __init__(self, call: Recurrence, engine: str) -> None:
        self.engine = engine
        self.steps, self.reverse = call.inputs.shape[0], call.reverse
        self.fields = len(call.state)
        self.autocast = autocast_now(call.inputs.device.type)
        cell: Any = call.cell
        self.module = cell if isinstance(cell, nn.Module) else None
        self._device = call.inputs.device
        self._state_type = type(call.state)
        self._lengths, self._resets, self._zoneout = call.lengths, call.resets, call.zoneout
        whole = replace(call, lengths=None, resets=None, zoneout=None)
        self._options: dict[str, Any] = {"reverse": call.reverse, "recurrent_mask": call.recurrent_mask}
        if self.module is None:
            self._rebuild = rebuilder(whole)
            self._names: list[str] = []
        else:
            self._names = [f"cell.{name}" for name, _ in self.module.named_parameters()]

    def tensors_of(self, call: Recurrence) -> list[Tensor | None]:
        """Everything of the call that may need a gradient: inputs, state fields, weights."""
        if self.module is None:
            return differentiable_tensors(call)
        return [call.inputs, *call.state, *self.module.parameters()]

    def run(self, span: Span, inputs: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor | None]) -> Unfolded:
        """The steps of `span`: `inputs` are theirs alone, `state` is the one before the first of them that runs."""
        if self.module is None:
            call = self._rebuild([inputs, *state, *weights])
            return kernels.run(self._within(call, span), self.engine)
        cell: Any = self.module
        call = Recurrence(cell, inputs, self._state_type(*state), **self._options)
        given = {name: weight for name, weight in zip(self._names, weights, strict=True) if weight is not None}
        # The weights may be copies, of which the module knows nothing.
        unfolded: Unfolded = torch.func.functional_call(
            _Holder(self.module), given, (self._within(call, span), self.engine)
        )
        return unfolded

    def _within(self, call: Recurrence, span: Span) -> Recurrence:
        """The call with what the whole one has for the steps of `span`."""
        begin, end = span
        return replace(
            call,
            inputs=call.inputs.contiguous(),
            lengths=None if self._lengths is None else (self._lengths - begin).clamp(0, end - begin),
            resets=None if self._resets is None else self._resets[begin:end],
            zoneout=None if self._zoneout is None else [z if z is None else z[begin:end] for z in self._zoneout],
        )

    # -- randomness ------------------------------------------------------------------------------------------------

    def snapshot(self, state: Sequence[Tensor]) -> Snapshot:
        """The state as it is, and what the generators would give from here on."""
        return Snapshot(tuple(state), tuple(get() for get, _ in self._generators()))

    def restore(self, snapshot: Snapshot) -> None:
        """Let random numbers be drawn as they were after the snapshot."""
        for (_, put), kept in zip(self._generators(), snapshot.generators, strict=True):
            put(kept)

    @contextmanager
    def randomness_untouched(self) -> Iterator[None]:
        """Whatever is drawn within, the generators are afterwards as they were."""
        before = self.snapshot(())
        try:
            yield
        finally:
            self.restore(before)

    def _generators(self) -> list[tuple[Any, Any]]:
        """How to read and set each generator that a step may draw from: none for built-in equations."""
        if self.module is None:
            return []
        found: list[tuple[Any, Any]] = [(torch.get_rng_state, torch.set_rng_state)]
        if self._device.type != "cpu":
            of_device: Any = torch.get_device_module(self._device)
            device = self._device
            found.append((lambda: of_device.get_rng_state(device), lambda kept: of_device.set_rng_state(kept, device)))
        own = (value for module in self.module.modules() for value in vars(module).values())
        found += [(g.get_state, g.set_state) for g in own if isinstance(g, torch.Generator)]
        return found

    def check(self, call: Recurrence, *, who: str) -> None:
        """See that every gradient of the call will be found.

        Raises:
            UsageError: a mask needs a gradient, the step uses a tensor that does and is no parameter, or the call is
                one of `torch.func`'s.
        """
        if torch._C._functorch.peek_interpreter_stack() is not None:
            raise UsageError(f"{who}: checkpoint= does not work under torch.func transforms; use checkpoint=None there")
        masks = [call.recurrent_mask, *(call.zoneout or ())]
        if any(mask is not None and mask.requires_grad for mask in masks):
            raise UsageError(f"{who}: checkpoint= has no gradient of masks; use checkpoint=None, or detach them")
        if self.module is not None and self._foreign(call):
            raise UsageError(
                f"{who}: checkpoint= finds gradients of parameters only, and step() uses another tensor that requires "
                "one; make it an nn.Parameter of the cell"
            )

    def _foreign(self, call: Recurrence) -> bool:
        """Whether a step's results need a gradient although nothing does that is known to."""
        inputs, *rest = [t.detach() for t in self.tensors_of(call) if t is not None]
        with self.randomness_untouched():
            one_step = Pieces(call, "reference").run((0, 1), inputs[:1], rest[: self.fields], rest[self.fields :])
        return any(tensor.requires_grad for tensor in flat(one_step))


class _Holder(nn.Module):
    """What `functional_call` calls."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, call: Recurrence, engine: str) -> Unfolded:
        """Run the call, while the cell has the weights that it is to have."""
        return kernels.run(call, engine)
