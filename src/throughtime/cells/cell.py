"""The contract of a cell: its parameters, its state, what can be hoisted out of the loop, and one time step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from throughtime.errors import ShapeError, UsageError
from throughtime.kernels import Recurrence, StepEquations


class Cell(nn.Module, ABC):
    """One time step of a recurrent network: h(t) = f(h(t-1), x(t); θ), with the same θ at every step (eq. 10.5).

    A cell of one's own declares the type of its state, a NamedTuple whose first field is the output h, and one
    step. It then runs in `tt.unfold`, and everywhere a built-in cell does:

        >>> import torch, throughtime as tt
        >>> from typing import NamedTuple
        >>> class LeakyState(NamedTuple):
        ...     h: torch.Tensor
        >>> class LeakyCell(tt.Cell):
        ...     State = LeakyState
        ...     def __init__(self, input_size, hidden_size):
        ...         super().__init__(input_size, hidden_size)
        ...         self.U = torch.nn.Linear(input_size, hidden_size)
        ...         self.W = torch.nn.Linear(hidden_size, hidden_size, bias=False)
        ...     def project_inputs(self, inputs):            # optional: one product for all steps
        ...         return self.U(inputs)
        ...     def step(self, projected, state):
        ...         h = 0.9 * state.h + 0.1 * torch.tanh(projected + self.W(state.h))
        ...         return LeakyState(h)
        >>> outputs, final = tt.unfold(LeakyCell(3, 5), torch.zeros(7, 2, 3))
        >>> outputs.shape, final.h.shape
        (torch.Size([7, 2, 5]), torch.Size([2, 5]))

    Source: Goodfellow, Bengio & Courville 2016, section 10.1.
    """

    State: ClassVar[Any]
    family: ClassVar[str] = "custom"
    engine: str = "auto"

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size)):
            if size < 1:
                raise ShapeError(f"{type(self).__name__}: {name} must be at least 1, got {size}")
        self.input_size = input_size
        self.hidden_size = hidden_size

    def state_sizes(self) -> tuple[int, ...]:
        """The size of each field of the state; `hidden_size` for all unless a cell says otherwise."""
        return (self.hidden_size,) * len(self.State._fields)

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> Any:
        """The state before the first step: zeros (B, size) for each field."""
        return self.State(*(torch.zeros(batch_size, size, dtype=dtype, device=device) for size in self.state_sizes()))

    def project_inputs(self, inputs: Float[Tensor, "*B I"]) -> Float[Tensor, "*B G"]:
        """All that x contributes and the state does not, computed for all time steps at once before the loop.

        The default hands x on as it is. What is returned for step t arrives in `step` as `projected`.
        """
        return inputs

    @abstractmethod
    def step(self, projected: Float[Tensor, "B G"], state: Any) -> Any:
        """One time step: the state after it."""

    def advance(
        self, projected: Tensor, state: Any, recurrent_mask: Tensor | None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """One step as engines call it: the next state, and no gates, for a cell of one's own."""
        if recurrent_mask is not None:
            raise UsageError(f"{type(self).__name__}: recurrent dropout needs a built-in cell; mask h within step()")
        return self.step(projected, state), ()

    def bind(self) -> StepEquations:
        """The equations with the weights of this moment, as engines take them."""
        return self

    def recurrences(self, inputs: Float[Tensor, "T B I"], state: Any = None, **options: Any) -> Iterator[Any]:
        """The one `Recurrence` that `tt.unfold` runs, for `tt.kernels.explain`."""
        yield type(self).__name__, self.recurrence(inputs, state, **options)

    def recurrence(self, inputs: Float[Tensor, "T B I"], state: Any = None, **options: Any) -> Recurrence:
        """This cell over the steps of `inputs`, from `state` or zeros.

        Raises:
            ShapeError: inputs are not (T, B, input_size), or the state is not one tensor (B, size) a field.
        """
        who = type(self).__name__
        if inputs.dim() != 3 or inputs.shape[2] != self.input_size:
            raise ShapeError(f"{who}: inputs must be (T, B, {self.input_size}), got {tuple(inputs.shape)}; "
                             "the time axis comes first")  # fmt: skip
        if state is None:
            state = self.initial_state(inputs.shape[1], dtype=inputs.dtype, device=inputs.device)
        fields = [state] if isinstance(state, Tensor) else list(state)
        if len(fields) != len(self.State._fields) or any(field.shape[0] != inputs.shape[1] for field in fields):
            raise ShapeError(
                f"{who}: state must be {self.State.__name__}({', '.join(self.State._fields)}), each with "
                f"{inputs.shape[1]} rows, got {[tuple(field.shape) for field in fields]}"
            )
        return Recurrence(self.bind(), inputs, self.State(*fields), **options)

    def forward(self, inputs: Tensor, state: Any = None) -> Any:
        """One step of x (B, I), or (I,) for a single sequence: the next state. A missing state is zeros.

        Raises:
            ShapeError: x's last axis is not `input_size`.
        """
        batched = inputs if inputs.dim() == 2 else inputs[None]
        if inputs.dim() not in (1, 2) or inputs.shape[-1] != self.input_size:
            raise ShapeError(
                f"{type(self).__name__}: inputs must be (B, {self.input_size}) or ({self.input_size},), "
                f"got {tuple(inputs.shape)}; for (T, B, {self.input_size}) use tt.unfold"
            )
        if state is None:
            state = self.initial_state(batched.shape[0], dtype=inputs.dtype, device=inputs.device)
        elif inputs.dim() == 1:
            state = self.State(*(field[None] for field in state))
        equations = self.bind()
        after, _ = equations.advance(equations.project_inputs(batched), self.State(*state), None)
        return after if inputs.dim() == 2 else self.State(*(field[0] for field in after))
