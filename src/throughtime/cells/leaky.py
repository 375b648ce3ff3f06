"""The plain recurrent cell with leaky units.

    a(t) = b + W h(t-1) + U x(t)                      (10.8)
    h(t) = α ⊙ h(t-1) + (1 - α) ⊙ tanh(a(t))          (10.9.2: a linear self-connection of weight α)

A unit is a running average: what enters it has lost all but 1/e of its weight after τ = -1 / ln α steps, its time
constant. α = 0 is the plain cell; at α = 0.99 the derivative of h(t) by h(t-1) keeps 0.99 of itself along the
self-connection, and information lives for about a hundred steps. α is fixed, one for all units or one for each, or
learned: then it is σ(`logit_alpha`), which stays between 0 and 1.
Source: Goodfellow, Bengio & Courville 2016, section 10.9.2; Mozer 1992; El Hihi & Bengio 1996; Jaeger et al. 2007.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from throughtime.cells.rnn import RNNState
from throughtime.cells.tanh import TanhCell
from throughtime.errors import ShapeError, UsageError


class LeakyCell(TanhCell):
    """h(t) = α ⊙ h(t-1) + (1 - α) ⊙ tanh(b + W h(t-1) + U x(t)).

        >>> import torch, throughtime as tt
        >>> cell = tt.nn.LeakyCell(3, 4, alpha=[0.0, 0.5, 0.9, 0.99])
        >>> [round(steps, 1) for steps in cell.time_constants.tolist()]
        [0.0, 1.4, 9.5, 99.5]
        >>> tt.unfold(cell, torch.zeros(7, 2, 3))[0].shape
        torch.Size([7, 2, 4])

    Args:
        input_size: the size I of x(t).
        hidden_size: the number H of units.
        alpha: the share of its old value that a unit keeps at each step, in [0, 1): one for all units, or one for each.
        learned: α is learned, one for each unit, and begins as `alpha`, which must then be above 0.

    Raises:
        ShapeError: as many values of `alpha` as there are not units.
        UsageError: an `alpha` outside [0, 1), or of 0 where it is to be learned.
    Source: Goodfellow, Bengio & Courville 2016, section 10.9.2.
    """

    State = RNNState
    fixed_alpha: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        alpha: float | Sequence[float] | Float[Tensor, " H"] = 0.9,
        *,
        learned: bool = False,
    ) -> None:
        super().__init__(input_size, hidden_size)
        values = torch.as_tensor(alpha, dtype=torch.get_default_dtype())
        if values.shape not in ((), (hidden_size,)):
            raise ShapeError(
                f"LeakyCell: alpha must be one number, or one for each of {hidden_size} units, "
                f"got shape {tuple(values.shape)}"
            )
        if not bool(((values >= 0) & (values < 1) & ((values > 0) | (not learned))).all()):
            interval = "(0, 1) where it is learned" if learned else "[0, 1)"
            raise UsageError(f"LeakyCell: alpha must lie in {interval}, got {values.min():g}..{values.max():g}")
        values = values.expand(hidden_size).clone()  # (H,)
        self.learned = learned
        if learned:
            self.logit_alpha = nn.Parameter(torch.logit(values))
        else:
            self.register_buffer("fixed_alpha", values)
        self.reset_parameters()

    @property
    def alpha(self) -> Float[Tensor, " H"]:
        """The share of its old value that each unit keeps at each step."""
        return torch.sigmoid(self.logit_alpha) if self.learned else self.fixed_alpha

    @property
    def time_constants(self) -> Float[Tensor, " H"]:
        """τ = -1 / ln α of each unit, in time steps; 0 where α is."""
        return -1 / torch.log(self.alpha.detach())

    def step(self, projected: Float[Tensor, "B H"], state: RNNState) -> RNNState:
        """One time step from b + U x(t)."""
        alpha = self.alpha
        moved = torch.tanh(projected + functional.linear(state.h, self.weight_hh))  # (B, H)
        return RNNState(alpha * state.h + (1 - alpha) * moved)

    def extra_repr(self) -> str:
        """The sizes and the time constants."""
        constants = self.time_constants
        learned = ", learned=True" if self.learned else ""
        return (
            f"{self.input_size}, {self.hidden_size}, "
            f"time constants {constants.min():.3g}..{constants.max():.3g} steps{learned}"
        )


def spread_alphas(hidden_size: int, shortest: float = 1.0, longest: float = 100.0) -> Float[Tensor, " H"]:
    """An α for each unit, their time constants spaced evenly in the logarithm from `shortest` to `longest` steps.

    Source: Goodfellow, Bengio & Courville 2016, section 10.9.2: units at several time scales side by side.

    Raises:
        UsageError: `shortest` is not above 0, or `longest` is below it.
    """
    if not 0 < shortest <= longest:
        raise UsageError(f"spread_alphas: expected 0 < shortest <= longest, got {shortest} and {longest}")
    logs = torch.linspace(0, 1, hidden_size) * torch.log(torch.tensor(longest / shortest))
    return torch.exp(-1 / (shortest * torch.exp(logs)))
