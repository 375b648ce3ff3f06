"""Learning online: the gradient carried forward with the state, no backward pass through time.

Let s(t) be the state (all its fields side by side) and θ the parameters. The influence matrix P(t) = ds(t)/dθ obeys

    P(t) = D(t) P(t-1) + J(t),   D(t) = ∂s(t)/∂s(t-1),   J(t) = ∂s(t)/∂θ with s(t-1) held still,

and the gradient of a loss L(t) that looks at h(t) is, at once, dL(t)/dθ = (∂L(t)/∂h(t)) P_h(t). It is exact while θ
stays as it is (real-time recurrent learning, Williams & Zipser 1989); P takes |s| · |θ| numbers for each sequence, so
this is for small networks.

SnAp-1 (Menick et al. 2021) keeps the entries of P that are not zero after one step: a parameter's influence on those
entries of the state that it enters itself, and what these do to each other. Of W_ij in a plain network that is h_i
alone, so that P takes as many numbers as θ.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call, jacrev, vjp, vmap

from throughtime.cells import Cell
from throughtime.errors import ShapeError, UsageError

# A rectified unit may happen to be silent: it would have to be in every row of every probe to be missed.
_PROBES = 4
_PROBE_ROWS = 8


class OnlineState(NamedTuple):
    """What is carried from step to step: the cell's own state, detached, and the influence of θ on it.

    The influence is (B, S, P) where it is exact, S being the size of all fields of the state together and P the number
    of parameters, and (B, K, P) with SnAp-1, K being the greatest number of entries of the state that one parameter
    enters: 1 for RNN and GRU, 2 for an LSTM.
    """

    state: Any
    influence: Tensor


class RealTimeRecurrentLearning:
    """The gradient of any cell's parameters, step by step as time goes on, in memory that does not grow with it.

        >>> import torch, throughtime as tt
        >>> cell = tt.nn.GRUCell(3, 5)
        >>> learning = RealTimeRecurrentLearning(cell)
        >>> online = learning.begin(batch_size=2)
        >>> for x in torch.randn(7, 2, 3):
        ...     online = learning.step(x, online)
        ...     h = online.state.h.requires_grad_()       # a leaf: nothing hangs on it
        ...     (gradient_of_h,) = torch.autograd.grad(h.square().sum(), h)
        ...     learning.accumulate(online, gradient_of_h)  # into .grad of the cell's parameters
        >>> online.influence.shape, cell.weight_hh.grad.shape
        (torch.Size([2, 5, 150]), torch.Size([15, 5]))

    Where the parameters change between steps, as they may, the influence is that of their former values, and the
    gradient is the usual approximation, good for small changes. A sequence that has ended gets a `gradient_of_h` of
    zero.

    Args:
        cell: any `tt.Cell` whose step takes one sequence as well as many, and works under `torch.func`.
        approximation: None, exact; or "snap1".

    Raises:
        UsageError: an approximation that there is not, or a cell without parameters to learn.

    Source: Williams & Zipser 1989; Menick, Elsen, Evci, Osindero, Simonyan & Graves 2021.
    """

    def __init__(self, cell: Cell, *, approximation: str | None = None) -> None:
        if approximation not in (None, "snap1"):
            raise UsageError(f"RealTimeRecurrentLearning: approximation must be None or 'snap1', got {approximation!r}")
        self.cell = cell
        self.approximation = approximation
        self._learnt = {name: p for name, p in cell.named_parameters() if p.requires_grad}
        if not self._learnt:
            raise UsageError(
                f"RealTimeRecurrentLearning: {type(cell).__name__} has no parameters that require a gradient"
            )
        self._fields = [tuple(field.shape[1:]) for field in cell.initial_state(1, device=torch.device("meta"))]
        self._reach = self._find_reach() if approximation == "snap1" else None  # (K, P)

    def begin(self, batch_size: int, state: Any = None) -> OnlineState:
        """The state before the first step and its influence: zero, but for an initial state that is itself learnt.

        A `state` that is handed in, as the cell's `State` or its fields, is a constant: no gradient comes from before.

        Raises:
            ShapeError: the state does not fit.
        """
        like = next(iter(self._learnt.values()))
        if state is not None:
            no_steps = like.new_zeros(0, batch_size, self.cell.input_size)
            flat = self._flatten(self.cell.recurrence(no_steps, state).state).detach()
            influence = flat.new_zeros(*flat.shape, self.parameter_count)  # (B, S, P)
        else:
            flat = self._flatten(self.cell.initial_state(batch_size, dtype=like.dtype, device=like.device))
            influence = self._influence_on_start(flat)
        if self._reach is not None:
            influence = _gathered(influence, self._reach)  # (B, K, P)
        return OnlineState(self._unflatten(flat.detach()), influence)

    @torch.no_grad()
    def step(self, x: Float[Tensor, "B I"], online: OnlineState) -> OnlineState:
        """One time step: s(t), and P(t) = D(t) P(t-1) + J(t). What is returned hangs on no graph.

        Raises:
            ShapeError: x or the state does not fit the cell.
        """
        flat = self._flatten(online.state)  # (B, S)
        if x.dim() != 2 or x.shape != (len(flat), self.cell.input_size):
            raise ShapeError(
                f"RealTimeRecurrentLearning: x must be ({len(flat)}, {self.cell.input_size}), one time step of the "
                f"sequences begun, got {tuple(x.shape)}"
            )
        if self._reach is None:
            jacobians = vmap(jacrev(self._one_step, argnums=(0, 2), has_aux=True), in_dims=(None, 0, 0))
            (J, D), after = jacobians(self._parameters(), x, flat)
            influence = torch.baddbmm(_joined(J, 2), D, online.influence)  # (B, S, P)
        else:
            D, after = vmap(jacrev(self._one_step, argnums=2, has_aux=True), in_dims=(None, 0, 0))(
                self._parameters(), x, flat
            )
            influence = self._own_influence(x, flat, self._reach)  # J, (B, K, P)
            for to, to_entry in enumerate(self._reach):
                for come, from_entry in enumerate(self._reach):
                    # D between the two entries, for each parameter; an absent entry's influence stays zero.
                    link = D[:, to_entry, from_entry] * ((to_entry >= 0) & (from_entry >= 0))  # (B, P)
                    influence[:, to] += link * online.influence[:, come]
        return OnlineState(self._unflatten(after), influence)

    @torch.no_grad()
    def gradients(self, online: OnlineState, gradient_of_h: Float[Tensor, "B H"]) -> dict[str, Tensor]:
        """dL(t)/dθ, by name, of a loss with ∂L(t)/∂h(t) = `gradient_of_h`, summed over the batch.

        Raises:
            ShapeError: the gradient is not shaped as h.
        """
        h = online.state[0]
        if gradient_of_h.shape != h.shape:
            raise ShapeError(
                f"RealTimeRecurrentLearning: gradient_of_h must be {tuple(h.shape)} as h is, "
                f"got {tuple(gradient_of_h.shape)}"
            )
        of_h = gradient_of_h.flatten(1)  # (B, H), the first entries of s
        if self._reach is None:
            total = torch.einsum("bh,bhp->p", of_h, online.influence[:, : of_h.shape[1]])
        else:
            in_h = (self._reach >= 0) & (self._reach < of_h.shape[1])  # (K, P)
            chosen = of_h[:, torch.where(in_h, self._reach, 0)] * in_h  # (B, K, P)
            total = (chosen * online.influence).sum((0, 1))
        parts = torch.split(total, [p.numel() for p in self._learnt.values()])
        return {name: part.view_as(p) for (name, p), part in zip(self._learnt.items(), parts, strict=True)}

    def accumulate(self, online: OnlineState, gradient_of_h: Float[Tensor, "B H"]) -> None:
        """Add dL(t)/dθ to `.grad` of the cell's parameters, as `backward()` would.

        Raises:
            ShapeError: the gradient is not shaped as h.
        """
        for name, gradient in self.gradients(online, gradient_of_h).items():
            parameter = self._learnt[name]
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad += gradient

    @property
    def parameter_count(self) -> int:
        """P, the number of parameters that learn."""
        return sum(p.numel() for p in self._learnt.values())

    def _flatten(self, state: Any) -> Tensor:
        """All fields of the state side by side, (*B, S)."""
        leading = state[0].dim() - len(self._fields[0])
        return torch.cat([field.flatten(leading) for field in state], dim=-1)

    def _unflatten(self, flat: Tensor) -> Any:
        """The fields again, as the cell's `State`."""
        parts = torch.split(flat, [math.prod(shape) for shape in self._fields], dim=-1)
        return self.cell.State(
            *(part.reshape(*flat.shape[:-1], *shape) for part, shape in zip(parts, self._fields, strict=True))
        )

    # -- one step, and what the parameters do to it -----------------------------------------------------------------

    def _parameters(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self._learnt.items()}

    def _one_step(self, parameters: dict[str, Tensor], x: Tensor, flat: Tensor) -> tuple[Tensor, Tensor]:
        """s(t) of one sequence, (S,), twice: to be differentiated, and as it is."""
        after = functional_call(self.cell, parameters, (x, self._unflatten(flat)))
        flat = self._flatten((after,) if isinstance(after, Tensor) else after)
        return flat, flat

    def _one_step_of_each(self, x: Tensor, parameters: dict[str, Tensor], flat: Tensor) -> Tensor:
        """s(t) of several sequences, (B, S)."""
        after, _ = vmap(self._one_step, in_dims=(None, 0, 0))(parameters, x, flat)
        return after

    def _influence_on_start(self, flat: Tensor) -> Tensor:
        """ds(0)/dθ (B, S, P) of an initial state that the cell makes of its parameters."""
        if not flat.requires_grad:
            return flat.new_zeros(*flat.shape, self.parameter_count)
        each = torch.eye(flat.numel(), dtype=flat.dtype, device=flat.device).view(-1, *flat.shape)  # (B · S, B, S)
        learnt = list(self._learnt.values())
        found = torch.autograd.grad(flat, learnt, each, is_grads_batched=True, allow_unused=True)
        parts = [
            flat.new_zeros(len(each), p.numel()) if part is None else part.flatten(1)
            for part, p in zip(found, learnt, strict=True)
        ]
        return torch.cat(parts, dim=1).view(*flat.shape, -1)

    def _own_influence(self, x: Tensor, flat: Tensor, reach: Tensor) -> Tensor:
        """The entries of J that SnAp-1 keeps, (B, K, P), by K vector products instead of S.

        No parameter enters two of the entries that stand in one row of the reach, so that one product with all of them
        tells them apart.
        """
        marks = torch.stack([_marked(entries, flat.shape[1]) for entries in reach]).to(flat)  # (K, S)

        def products(x: Tensor, flat: Tensor) -> dict[str, Tensor]:
            pull = vjp(lambda parameters: self._one_step(parameters, x, flat)[0], self._parameters())[1]
            found: dict[str, Tensor] = vmap(lambda mark: pull(mark)[0])(marks)
            return found

        return _joined(vmap(products)(x, flat), 2)

    def _find_reach(self) -> Int[Tensor, "K P"]:
        """Which entries of the state each parameter enters within one step; -1 where they are fewer than K.

        They are found by looking which derivatives are not zero at random parameters, inputs and states: what a
        parameter enters is a matter of the equations, not of the values. A parameter of the initial state enters what
        it does at the start, and one step later. An entry stands in one row, for all parameters that enter it.
        """
        like = next(iter(self._learnt.values()))
        start = self._flatten(self.cell.initial_state(1, dtype=like.dtype, device=like.device))  # (1, S)
        at_start = self._influence_on_start(start)[0] != 0 if start.requires_grad else None  # (S, P)
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(like)

        pulls = []
        for _ in range(_PROBES):
            moved = {name: (p + random(*p.shape)).detach() for name, p in self._learnt.items()}
            x, flat = random(_PROBE_ROWS, self.cell.input_size), random(_PROBE_ROWS, start.shape[1])
            pulls.append(vjp(partial(self._one_step_of_each, x), moved, flat)[1])
        rows: list[Tensor] = []
        for entry in range(start.shape[1]):
            mark = torch.zeros(_PROBE_ROWS, start.shape[1]).to(like)
            mark[:, entry] = random(_PROBE_ROWS)
            pulled = [pull(mark) for pull in pulls]
            entered = torch.stack([_joined(J, 0) for J, _ in pulled]).ne(0).any(0)  # (P,)
            if at_start is not None:
                before = torch.cat([D for _, D in pulled]).ne(0).any(0)  # (S,), the entries that this one comes from
                entered |= at_start[entry] | at_start[before].any(0)
            row = next((row for row in rows if bool((row[entered] < 0).all())), None)
            if row is None:
                row = torch.full_like(entered, -1, dtype=torch.int64)
                rows.append(row)
            row[entered] = entry
        return torch.stack(rows)


def _joined(jacobian: dict[str, Tensor], leading: int) -> Tensor:
    """One axis of P parameters, in their order, behind the first axes."""
    return torch.cat([part.flatten(leading) for part in jacobian.values()], dim=-1)


def _marked(entries: Int[Tensor, " P"], size: int) -> Tensor:
    """1 where an entry of the state occurs among `entries`, (S,)."""
    mark = torch.zeros(size, device=entries.device)
    mark[entries[entries >= 0]] = 1
    return mark


def _gathered(influence: Float[Tensor, "B S P"], reach: Int[Tensor, "K P"]) -> Float[Tensor, "B K P"]:
    """The entries that SnAp-1 keeps of a whole influence matrix."""
    index = reach.clamp(min=0).expand(len(influence), *reach.shape)
    return influence.gather(1, index) * (reach >= 0)
