"""The Jacobians of single time steps, applied to vectors: what gradients are multiplied by on their way through time.

    ∂h(t)/∂h(t-k) = ∂h(t)/∂h(t-1) · ∂h(t-1)/∂h(t-2) · … · ∂h(t-k+1)/∂h(t-k)

No matrix H × H is ever formed. One step's Jacobian acts from the left on a row vector by reverse differentiation of the
cell's equations (vjp), from the right on a column vector by differentiating that once more (jvp); a product of k of
them by k such steps. Products that end at different t, and different sequences, are rows of one batch.

Source: Goodfellow, Bengio & Courville 2016, section 10.7; Pascanu, Mikolov & Bengio 2013, section 2.1. The leading
singular values: subspace iteration from random vectors, Halko, Martinsson & Tropp 2011, algorithm 4.4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from throughtime import kernels
from throughtime.errors import UsageError
from throughtime.kernels import Recurrence, Unfolded
from throughtime.recurrence.lengths import inside
from throughtime.recurrence.walk import Place, check_layer, walk

Fields = tuple[Tensor, ...]

# Vectors beyond those asked for, without which the last of them converges slowly (Halko et al. 2011, section 4.2).
_OVERSAMPLING = 4
_MOST_ITERATIONS = 40


@dataclass(frozen=True, eq=False)
class Link:
    """One layer through time with all its states known, so that every step's Jacobian can be applied.

    Axes of times and vectors are (*A, B): any number of chosen times, then the sequences.

    where: the layer's name.
    call: what the layer computed.
    projected: what x contributes to each step, (T, B, G).
    before: the state before each step, one (T, B, size) for each field.
    states, gates: those after each step.
    """

    where: str
    call: Recurrence
    projected: Tensor
    before: Fields
    states: Any
    gates: Any

    @property
    def names(self) -> tuple[str, ...]:
        """The fields of the state; the first one is the output h."""
        names: tuple[str, ...] = self.call.state._fields
        return names

    def vjp(self, at: Int[Tensor, "*A"], cotangents: Fields, *, to_inputs: bool = False) -> tuple[Fields, Any]:
        """Row vectors times the Jacobian of the steps `at`: gradients of the state before, and of x where asked.

        `cotangents`, one (*A, B, size) for each field, are gradients of the state after.
        """
        state = tuple(rows(field[at]).requires_grad_() for field in self.before)
        x = rows(self.call.inputs[at]).requires_grad_() if to_inputs else None
        with torch.enable_grad():
            projected = rows(self.projected[at]) if x is None else self.call.cell.project_inputs(x)
            after = self._step(at, projected)(*state)
            found = torch.autograd.grad(
                after,
                [*state] if x is None else [*state, x],
                [rows(field) for field in cotangents],
                allow_unused=True,
                materialize_grads=True,
            )
        shaped = [like(at, gradient) for gradient in found]
        return self._reset(at, tuple(shaped[: len(state)])), None if x is None else shaped[-1]

    def jvp(self, at: Int[Tensor, "*A"], tangents: Fields) -> Fields:
        """The Jacobian of the steps `at` times column vectors: changes of the state after, by those of that before."""
        state = tuple(rows(field[at]).requires_grad_() for field in self.before)
        with torch.enable_grad():
            after = self._step(at, rows(self.projected[at]))(*state)
            # uᵀJ is linear in u: its derivative by u, along v, is Jv, for every operation with a second derivative.
            u = [torch.zeros_like(field, requires_grad=True) for field in after]
            u_j = torch.autograd.grad(after, state, u, create_graph=True, allow_unused=True, materialize_grads=True)
            changes = [rows(field) for field in self._reset(at, tangents)]
            pairs = [(row, change) for row, change in zip(u_j, changes, strict=True) if row.requires_grad]
            found = torch.autograd.grad(
                [row for row, _ in pairs], u, [change for _, change in pairs], allow_unused=True, materialize_grads=True
            )
        return tuple(like(at, field) for field in found)

    def pull_back_output(self, at: Int[Tensor, " N"], row: Tensor) -> Tensor:
        """(row vectors) ∂h(t)/∂h(t-1), (N, B, H), as a function of the parameters that can be differentiated.

        The states before, their other fields too, and x are constants.
        """
        state = tuple(rows(field[at]) for field in self.before)
        h = state[0].requires_grad_()
        with torch.enable_grad():
            # Not the known projection: that of the parameters.
            projected = self.call.cell.project_inputs(rows(self.call.inputs[at]))
            after = self._step(at, projected)(h, *state[1:])
            (found,) = torch.autograd.grad(after[0], h, rows(row), create_graph=True, materialize_grads=True)
        return like(at, found)

    def _step(self, at: Tensor, projected: Tensor) -> Callable[..., Fields]:
        """The steps `at` as a function of the fields of the state before, each (rows, size)."""
        mask = self.call.recurrent_mask
        mask = None if mask is None else rows(mask.expand(*at.shape, *mask.shape))
        kept = [None if share is None else rows(share[at]) for share in self.call.zoneout or [None] * len(self.before)]

        def step(*fields: Tensor) -> Fields:
            after, _ = self.call.cell.advance(projected, type(self.call.state)(*fields), mask)
            mixed = zip(kept, fields, after, strict=True)
            return tuple(new if share is None else share * old + (1 - share) * new for share, old, new in mixed)

        return step

    def _reset(self, at: Tensor, fields: Fields) -> Fields:
        """Zero where the step begins a new sequence: the state before it counts no more."""
        if self.call.resets is None:
            return fields
        goes_on = ~self.call.resets[at][..., None]  # (*A, B, 1)
        return tuple(field * goes_on for field in fields)

    def reaches(self, at: Int[Tensor, "*A"], lag: Int[Tensor, "*A"]) -> Tensor:
        """Whether the state at t - k is one of the same sequence, and t within its length; (*A, B)."""
        steps, batch, _ = self.call.inputs.shape
        # The number of the sequence that each step belongs to.
        begun = torch.zeros(steps, batch, dtype=torch.int64, device=at.device)
        if self.call.resets is not None:
            begun = self.call.resets.long().cumsum(0)
        same = ((at >= lag)[..., None]) & (begun[at] == begun[(at - lag).clamp(min=0)])
        return same if self.call.lengths is None else same & (at[..., None] < self.call.lengths)


def rows(field: Tensor) -> Tensor:
    """(*A, B, size) as (rows, size)."""
    return field.flatten(0, -2)


def like(at: Tensor, field: Tensor) -> Tensor:
    """(rows, size) as (*A, B, size)."""
    return field.reshape(*at.shape, -1, field.shape[-1])


def links(
    layer: Any, inputs: Any, state: Any = None, *, lengths: Any = None, resets: Any = None, who: str = "flow"
) -> list[Link]:
    """Run a layer, and keep what the Jacobians of its steps are made of: a link for each layer, the bottom one first.

    `layer` is a `tt.Cell` (inputs are then (T, B, I)) or a layer of `tt.nn`.

    Raises:
        UsageError: neither, one that reads sequences from their end too, or one that drops what goes from one of its
            layers to the next.
        ShapeError: inputs, state, lengths or resets that do not fit.
    """
    check_layer(layer, who=who)
    if getattr(layer, "bidirectional", False):
        raise UsageError(
            f"{who}: a lag goes one way in time, {type(layer).__name__} is bidirectional; "
            "measure a layer of one direction"
        )
    for name in ("dropout", "variational_dropout"):
        if layer.training and getattr(layer, name, 0) and layer.num_layers > 1:
            raise UsageError(
                f"{who}: {type(layer).__name__} draws {name} between its layers while training; "
                f"call layer.eval() before, or set {name}=0"
            )
    chain: list[Link] = []

    def run(call: Recurrence, place: Place) -> Unfolded:
        with torch.no_grad():
            call = _recorded(call)
            found = kernels.run(call, layer.engine)
            chain.append(_link(place.where, call, found))
        return found

    # Weights that are made of other parameters are to stay functions of these.
    walk(layer, run, inputs, state, lengths=lengths, resets=resets, who=who)
    return chain


def _recorded(call: Recurrence) -> Recurrence:
    """The call, its inputs constants, with every state and gate."""
    inputs = call.inputs.detach()
    if call.lengths is not None:
        # What stands in the padding must not matter, not even through 0 · nan.
        inputs = torch.where(inside(call.lengths, inputs)[..., None], inputs, 0)
    return replace(call, inputs=inputs, record=True)


def _link(where: str, call: Recurrence, found: Unfolded) -> Link:
    before = []
    for first, field in zip(call.state, found.states, strict=True):
        earlier = torch.cat([first[None].to(field.dtype), field[:-1]])  # (T, B, size)
        before.append(earlier if call.resets is None else earlier.masked_fill(call.resets[..., None], 0))
    return Link(where, call, call.cell.project_inputs(call.inputs), tuple(before), found.states, found.gates)


def rescale(fields: Sequence[Tensor], axes: tuple[int, ...], log_scale: Tensor) -> tuple[Fields, Tensor]:
    """`fields` with their largest entry over `axes` (of all fields together) brought to 1, and the new log scale.

    What vanishes or explodes over a thousand steps leaves the range of float32 long before that of a logarithm.
    """
    largest = torch.stack([field.abs().amax(axes, keepdim=True) for field in fields]).amax(0)
    factor = torch.where(largest > 0, largest, 1)
    return tuple(field / factor for field in fields), log_scale + factor.double().log()


@torch.no_grad()
def singular_values(
    link: Link,
    at: Int[Tensor, " N"],
    lags: Sequence[int],
    count: int,
    *,
    block: str = "h",
    generator: torch.Generator,
    tolerance: float = 1e-3,
) -> Float[Tensor, "L N B R"]:
    """The `count` largest singular values of ∂s(t)/∂s(t-k) within one layer, largest first, in float64.

    Args:
        link: the layer.
        at: the times t.
        lags: the values of k, each at least 1.
        count: how many; at most the size of s.
        block: which part of the state s is: "h" (at fixed c(t-k), all ways from h(t-k) to h(t), those through c
            included), "c", or "state" for the whole, (h, c) of an LSTM.
        generator: where the iteration begins.
        tolerance: relative change of the largest at which the iteration ends.

    Returns:
        NaN where t - k lies before a sequence's beginning or t behind its end. Values below 1e-6 of the largest
        (1e-14 in float64) are rounding errors.

    Raises:
        UsageError: no such block, or count or lags out of range.
    """
    lags = sorted(lags)
    chosen = _chosen(link, block)
    size = sum(link.before[index].shape[-1] for index in chosen)
    if not lags or lags[0] < 1 or not 1 <= count <= size:
        raise UsageError(f"singular_values: lags must be 1 or more and count within 1..{size}, got {lags} and {count}")
    products = _Products(link, at, lags, chosen)
    shape = (len(lags), len(at), link.projected.shape[1], size, min(size, count + _OVERSAMPLING))
    start = torch.randn(shape, generator=generator, dtype=torch.float64).to(link.before[0])
    right = _orthonormal(products.transposed(start)[0])[0]  # (L, N, B, S, P), as all below
    before: Tensor | None = None
    for _ in range(_MOST_ITERATIONS):
        images, log_scale = products.forward(right)
        left, triangle = _orthonormal(images)
        values = torch.linalg.svdvals(triangle.double())[..., :count] * log_scale.exp()
        if before is not None and bool(((values - before).abs() <= tolerance * values[..., :1]).all()):
            break
        before = values
        right = _orthonormal(products.transposed(left)[0])[0]
    lag = torch.tensor(lags, device=at.device)[:, None].expand(-1, len(at))
    reached = link.reaches(at.expand(len(lags), -1), lag)  # (L, N, B)
    found: Tensor = values.masked_fill(~reached[..., None], torch.nan)
    return found


def _chosen(link: Link, block: str) -> tuple[int, ...]:
    """The fields of the state that a block consists of.

    Raises:
        UsageError: there is no such block.
    """
    if block == "state":
        return tuple(range(len(link.names)))
    if block not in link.names:
        raise UsageError(f"singular_values: block must be one of {(*link.names, 'state')}, got {block!r}")
    return (link.names.index(block),)


def _orthonormal(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Q, as precise as the vectors are, and R of (..., S, P)."""
    # There is no QR decomposition in half precision.
    q, r = torch.linalg.qr(vectors.to(torch.promote_types(vectors.dtype, torch.float32)))
    return q.to(vectors.dtype), r


class _Products:
    """∂s(t)/∂s(t-k) for several lags at once, times vectors (L, N, B, S, P) from either side.

    Shorter products leave the batch when they are done: with rising lags those at work stand at the end.
    """

    def __init__(self, link: Link, at: Tensor, lags: Sequence[int], chosen: tuple[int, ...]) -> None:
        self.link, self.at, self.lags, self.chosen = link, at, lags, chosen

    def transposed(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """(∂s(t)/∂s(t-k))ᵀ times the vectors, from t back, up to e to the second result (L, N, B, 1)."""
        return self._go(vectors, range(self.lags[-1]), self._back)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """∂s(t)/∂s(t-k) times the vectors, from t-k on, up to e to the second result (L, N, B, 1)."""
        return self._go(vectors, reversed(range(self.lags[-1])), self.link.jvp)

    def _back(self, at: Tensor, fields: Fields) -> Fields:
        return self.link.vjp(at, fields)[0]

    def _go(self, vectors: Tensor, steps_back: Any, apply: Callable[[Tensor, Fields], Fields]) -> tuple[Tensor, Tensor]:
        fields = self._spread(vectors)
        log_scale = fields[0].new_zeros(*vectors.shape[:2], 1, vectors.shape[2], 1, dtype=torch.float64)
        for back in steps_back:
            first = sum(lag <= back for lag in self.lags)
            at = (self.at - back).clamp(min=0).expand(len(self.lags) - first, vectors.shape[-1], -1).mT  # (L', N, P)
            moved = apply(at, tuple(field[first:] for field in fields))
            moved, scale = rescale(moved, (2, 4), log_scale[first:])
            for field, new in zip(fields, moved, strict=True):
                field[first:] = new
            log_scale[first:] = scale
        return self._gathered(fields), log_scale[:, :, 0]

    def _spread(self, vectors: Tensor) -> Fields:
        """(L, N, B, S, P) as one (L, N, P, B, size) for each field of the state; zero for those left out."""
        sizes = [self.link.before[index].shape[-1] for index in self.chosen]
        parts = iter(torch.split(vectors.movedim(-1, 2), sizes, -1))
        lags, times, batch, _, count = vectors.shape
        return tuple(
            next(parts).clone() if index in self.chosen
            else vectors.new_zeros(lags, times, count, batch, field.shape[-1])
            for index, field in enumerate(self.link.before)
        )  # fmt: skip

    def _gathered(self, fields: Fields) -> Tensor:
        return torch.cat([fields[index] for index in self.chosen], -1).movedim(2, -1)
