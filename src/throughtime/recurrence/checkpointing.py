"""Backpropagation through time with few states kept: the rest is computed again when its gradients are wanted.

Full BPTT keeps everything of all τ steps until the backward pass has used it. Here the forward pass keeps states at
borders of segments only; the backward pass takes the segments from the last to the first, runs each again from the
state at its begin, and differentiates it. The gradients are the same.

Source: Gruslys et al. 2016, "Memory-efficient backpropagation through time"; Chen et al. 2016 for √τ segments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from throughtime import kernels
from throughtime.errors import UsageError
from throughtime.kernels import Recurrence, Unfolded
from throughtime.recurrence.footprint import measured
from throughtime.recurrence.placement import (
    MemoryBudget,
    Placement,
    checked_checkpoint,
    every_border,
    first_border,
    within_budget,
)
from throughtime.recurrence.segments import Pieces, Snapshot, Span

Gradients = list[Tensor | None]


def engine_run(
    engine: str, checkpoint: str | int | MemoryBudget | None, *, who: str
) -> Callable[[Recurrence], Unfolded]:
    """What computes a recurrence on the engine of that name, checkpointed where `checkpoint` is not None."""
    if checkpoint is None:
        return lambda call: kernels.run(call, engine)
    return lambda call: run_checkpointed(call, engine, checkpoint, who=who)


def run_checkpointed(call: Recurrence, engine: str, checkpoint: str | int | MemoryBudget, *, who: str) -> Unfolded:
    """What `kernels.run(call, engine)` gives, its backward pass in segments.

    Args:
        call: any recurrence that does not record every state.
        engine: "auto", or the name of one engine.
        checkpoint: "sqrt" for √τ segments, a number of segments (at most one a step is taken), or a `MemoryBudget`.
        who: the name that errors begin with.

    Raises:
        UsageError: `checkpoint` is none of these, the budget cannot hold one step, or a gradient would be missing.
        EngineError: the engine asked for by name cannot run this.
    """
    checked_checkpoint(checkpoint, who=who)
    if call.record:
        raise UsageError(f"{who}: checkpoint= cannot hand out every state and gate; use checkpoint=None for these")
    pieces = Pieces(call, engine)
    tensors = pieces.tensors_of(call)
    needed = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if not needed or pieces.steps < 2 or not call.inputs.shape[1]:
        return kernels.run(call, engine)  # nothing is kept, or there is no border
    pieces.check(call, who=who)
    placement = _placed(pieces, tensors, checkpoint, who=who)
    if placement.segments == 1:
        return kernels.run(call, engine)
    outputs, *state = _Checkpointed.apply(pieces, placement, *tensors)  # type: ignore[no-untyped-call]
    return Unfolded(outputs, type(call.state)(*state))


def _placed(pieces: Pieces, tensors: Sequence[Any], checkpoint: str | int | MemoryBudget, *, who: str) -> Placement:
    if isinstance(checkpoint, MemoryBudget):
        state = tensors[1 : 1 + pieces.fields]
        of_a_state = sum(field.numel() * field.element_size() for field in state)
        with pieces.randomness_untouched():
            of_a_state += sum(kept.numel() for kept in pieces.snapshot(state).generators)
            footprint = measured(lambda steps: _trial(pieces, tensors, steps), pieces.steps, of_a_state)
        return within_budget(pieces.steps, checkpoint, footprint, who=who)
    segments = round(math.sqrt(pieces.steps)) if isinstance(checkpoint, str) else checkpoint
    return every_border(min(segments, pieces.steps))


def _trial(pieces: Pieces, tensors: Sequence[Any], steps: int) -> None:
    """One segment forward and backward, as the first of the call, but for the parameters' gradients."""
    run = _Run(pieces, Placement(1, 0), tensors, [True] * len(tensors))
    segment = run.differentiable_segment((0, steps), run.state)
    of_outputs = segment.results[0].detach()[:1].expand_as(segment.results[0])
    ends = [of_outputs, *(r.detach() for r in segment.results[1:])]
    segment.gradients(ends, 1 + pieces.fields)


class _Segment(NamedTuple):
    """Steps that have been run: the leaves of their graph (inputs, state, weights), and its ends (outputs, state)."""

    leaves: list[Tensor | None]
    results: tuple[Tensor, ...]

    def gradients(self, given: Sequence[Tensor | None], count: int) -> Gradients:
        """Of the first `count` leaves, for those of the results."""
        pairs = [(r, g) for r, g in zip(self.results, given, strict=True) if g is not None and r.requires_grad]
        leaves = self.leaves[:count]
        wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
        if not pairs or not wanted:
            return [None] * count
        ends, of_ends = [r for r, _ in pairs], [g.contiguous() for _, g in pairs]
        found = iter(torch.autograd.grad(ends, wanted, of_ends, allow_unused=True))
        return [next(found) if leaf is not None and leaf.requires_grad else None for leaf in leaves]


class _Run:
    """The segments of one call, in the order in which they run, on its tensors."""

    def __init__(
        self, pieces: Pieces, placement: Placement, tensors: Sequence[Tensor | None], wanted: Sequence[bool]
    ) -> None:
        self.pieces, self.placement = pieces, placement
        inputs, *rest = tensors
        assert inputs is not None
        self.inputs, self.wanted = inputs, wanted
        self.state: list[Any] = rest[: pieces.fields]
        self.weights = rest[pieces.fields :]
        spans = placement.spans(pieces.steps)
        self.spans = spans[::-1] if pieces.reverse else spans

    def first(self) -> Snapshot:
        """The state before the first segment; the generators are to stand there now."""
        return self.pieces.snapshot([field.detach() for field in self.state])

    def descend(self, kept: list[tuple[int, Snapshot]], target: int, outputs: _Outputs | None = None) -> Snapshot:
        """The state before segment `target`, run from the last of the states `kept`, which grow as the placement says.

        `kept` holds numbers of segments and the state before each.
        """
        border, snapshot = kept[-1]
        self.pieces.restore(snapshot)
        free = self.placement.snapshots - (len(kept) - 1)
        while border < target:
            stop = border + first_border(target + 1 - border, free) if free else target
            state: Sequence[Tensor] = snapshot.state
            for span in self.spans[border:stop]:
                state = self._pass(span, state, outputs)
            border, snapshot = stop, self.pieces.snapshot(state)
            if free:
                kept.append((border, snapshot))
                free -= 1
        return snapshot

    def _pass(self, span: Span, state: Sequence[Tensor], outputs: _Outputs | None) -> tuple[Tensor, ...]:
        """The state behind the segment, without keeping anything of it."""
        begin, end = span
        with torch.no_grad():
            unfolded = self.pieces.run(span, self.inputs[begin:end], state, self.weights)
        if outputs is not None:
            outputs.write(span, unfolded.outputs)
        return tuple(unfolded.final_state)

    def differentiable_segment(self, span: Span, state: Sequence[Tensor], *, is_first: bool = False) -> _Segment:
        """Run the steps of `span` with all that their backward pass needs, on leaves of their own."""
        begin, end = span
        count = 1 + self.pieces.fields
        inputs = self.inputs[begin:end].detach().requires_grad_(self.wanted[0])
        of_state = self.wanted[1:count] if is_first else [field.is_floating_point() for field in state]
        fields = [field.detach().requires_grad_(needed) for field, needed in zip(state, of_state, strict=True)]
        weights = [
            weight if weight is None else weight.detach().requires_grad_(needed and weight.is_floating_point())
            for weight, needed in zip(self.weights, self.wanted[count:], strict=True)
        ]
        with torch.enable_grad():
            unfolded = self.pieces.run(span, inputs, fields, weights)
        return _Segment([inputs, *fields, *weights], (unfolded.outputs, *unfolded.final_state))


class _Outputs:
    """The outputs of all steps, in one tensor from the first segment on."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self.whole: Tensor | None = None

    def write(self, span: Span, outputs: Tensor) -> None:
        """Put down those of one segment."""
        if self.whole is None:
            self.whole = outputs.new_empty(self._steps, *outputs.shape[1:])
        self.whole[span[0] : span[1]] = outputs


class _Checkpointed(torch.autograd.Function):
    """The whole call as one node of autograd's graph."""

    @staticmethod
    def forward(ctx: Any, pieces: Pieces, placement: Placement, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        ctx.pieces, ctx.placement = pieces, placement
        run = _Run(pieces, placement, tensors, ctx.needs_input_grad[2:])
        ctx.first = run.first()
        ctx.kept = [(0, ctx.first)]
        outputs = _Outputs(pieces.steps)
        before_last = run.descend(ctx.kept, placement.segments - 1, outputs)
        # The backward pass begins with this segment: what it needs may stay.
        last = run.differentiable_segment(run.spans[-1], before_last.state)
        ctx.ready = [last]
        outputs.write(run.spans[-1], last.results[0].detach())
        assert outputs.whole is not None
        return (outputs.whole, *(field.detach() for field in last.results[1:]))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        run = _Run(ctx.pieces, ctx.placement, ctx.saved_tensors, ctx.needs_input_grad[2:])
        # The second time over a graph that was kept, states and the last segment are used up: all is run anew.
        kept, ready = ctx.kept or [(0, ctx.first)], ctx.ready
        ctx.kept, ctx.ready = None, []
        with ctx.pieces.autocast(), ctx.pieces.randomness_untouched():
            if torch.is_grad_enabled():
                return (None, None, *_to_be_differentiated(run, ctx.first, gradients))
            return (None, None, *_backward(run, kept, ready, gradients))


def _backward(
    run: _Run, kept: list[tuple[int, Snapshot]], ready: list[_Segment], gradients: Sequence[Tensor | None]
) -> Gradients:
    """The gradients of a call's tensors, segment by segment from the last, which may be `ready`, to the first.

    Both lists are used up, so that nobody holds on to what is in them.
    """
    of_outputs, *of_state = gradients
    count = 1 + run.pieces.fields
    found = _Sums(run)
    for number in reversed(range(run.placement.segments)):
        begin, end = span = run.spans[number]
        given = [None if of_outputs is None else of_outputs[begin:end], *of_state]
        if ready:
            segment = ready.pop()
        else:
            segment = run.differentiable_segment(span, run.descend(kept, number).state, is_first=number == 0)
        if number and kept[-1][0] == number:
            kept.pop()
        of_leaves = segment.gradients(given, len(segment.leaves))
        found.add(span, of_leaves)
        of_state = of_leaves[1:count]
        del segment, of_leaves  # before the next one is run
    return [found.inputs, *of_state, *found.of_weights()]


class _Sums:
    """Gradients of the inputs, in one tensor, and of the weights, summed over segments."""

    def __init__(self, run: _Run) -> None:
        self.inputs = torch.empty(run.inputs.shape, dtype=run.inputs.dtype, device=run.inputs.device) \
            if run.wanted[0] else None  # fmt: skip
        self._weights = run.weights
        self._fields = run.pieces.fields
        self._sums: Gradients = [None] * len(run.weights)

    def add(self, span: Span, of_leaves: Gradients) -> None:
        """Put in what one segment has found."""
        of_inputs, *rest = of_leaves
        if self.inputs is not None:
            part = self.inputs[span[0] : span[1]]
            part.zero_() if of_inputs is None else part.copy_(of_inputs)
        for index, gradient in enumerate(rest[self._fields :]):
            if gradient is None:
                continue
            total = self._sums[index]
            if total is None:
                # Autograd may give one tensor for two weights. Many terms want more digits than bfloat16 has.
                half = gradient.dtype in (torch.bfloat16, torch.float16)
                self._sums[index] = gradient.float() if half else gradient.clone()
            else:
                total += gradient

    def of_weights(self) -> Gradients:
        """The sums, each in the type of its weight."""
        return [
            total if total is None or weight is None else total.to(weight.dtype)
            for total, weight in zip(self._sums, self._weights, strict=True)
        ]


def _to_be_differentiated(run: _Run, first: Snapshot, gradients: Sequence[Tensor | None]) -> Gradients:
    """The same gradients with a graph of their own, which holds all segments at once, as that of full BPTT does."""
    # Aliases end the search for gradients here: how these tensors were made is autograd's to follow, and to count once.
    leaves = [t if t is None or not t.requires_grad else t.view_as(t) for t in (run.inputs, *run.state, *run.weights)]
    inputs, *rest = leaves
    state: Sequence[Any] = rest[: run.pieces.fields]
    weights = rest[run.pieces.fields :]
    run.pieces.restore(first)
    outputs = []
    assert inputs is not None
    for span in run.spans:
        unfolded = run.pieces.run(span, inputs[span[0] : span[1]], state, weights)
        outputs.append(unfolded.outputs)
        state = unfolded.final_state
    results = (torch.cat(outputs[::-1] if run.pieces.reverse else outputs), *state)
    pairs = [(r, g) for r, g in zip(results, gradients, strict=True) if g is not None and r.requires_grad]
    wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    if not pairs:
        return [None for _ in leaves]
    ends, of_ends = [r for r, _ in pairs], [g for _, g in pairs]
    found = iter(torch.autograd.grad(ends, wanted, of_ends, create_graph=True, allow_unused=True))
    return [next(found) if leaf is not None and leaf.requires_grad else None for leaf in leaves]
