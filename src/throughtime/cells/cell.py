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
    step. It then runs in `tt.unfold` as a built-in cell does:

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
        who = type(self).__name__
        if recurrent_mask is not None:
            raise UsageError(f"{who}: recurrent dropout needs a built-in cell; mask h within step()")
        after = self.step(projected, state)
        if not isinstance(after, tuple) or len(after) != len(self.State._fields):
            raise UsageError(
                f"{who}: step() must return {self.State.__name__}({', '.join(self.State._fields)}), "
                f"got {type(after).__name__}"
            )
        return self.State(*after), ()

    def bind(self) -> StepEquations:
        """The equations with the weights of this moment, as engines take them."""
        return self

    def recurrences(self, inputs: Float[Tensor, "T B I"], state: Any = None, **options: Any) -> Iterator[Any]:
        """The one `Recurrence` that `tt.unfold` runs, for `tt.kernels.explain`."""
        yield type(self).__name__, self.recurrence(inputs, state, **options)

    def recurrence(self, inputs: Float[Tensor, "T B I"], state: Any = None, **options: Any) -> Recurrence:
        """The cell over the steps of `inputs`, from `state` or zeros.

        Raises:
            ShapeError: inputs are not (T, B, input_size), or the state is not one tensor (B, size) a field.
        """
        who = type(self).__name__
        if inputs.dim() != 3 or inputs.shape[2] != self.input_size:
            raise ShapeError(f"{who}: inputs must be (T, B, {self.input_size}), got {tuple(inputs.shape)}; "
                             "the time axis comes first")  # fmt: skip
        return Recurrence(self.bind(), inputs, self._state(state, inputs.shape[1], inputs), **options)

    def _state(self, state: Any, batch_size: int, like: Tensor) -> Any:
        """`state`, a `State` or its fields, checked; zeros on the device of `like` where it is missing.

        Raises:
            ShapeError: not the fields, or not the shapes, of `initial_state`.
        """
        if state is None:
            return self.initial_state(batch_size, dtype=like.dtype, device=like.device)
        fields = [state] if isinstance(state, Tensor) else list(state)
        expected = [tuple(f.shape) for f in self.initial_state(batch_size, device=torch.device("meta"))]
        got = [tuple(field.shape) for field in fields]
        if got != expected:
            form = ", ".join(f"{name} {shape}" for name, shape in zip(self.State._fields, expected, strict=True))
            raise ShapeError(f"{type(self).__name__}: state must be {self.State.__name__}({form}), got {got}")
        return self.State(*fields)

    def forward(self, inputs: Tensor, state: Any = None) -> Any:
        """One step of x (B, I), or (I,) for a single sequence: the next state. A missing state is zeros.

        Raises:
            ShapeError: x's last axis is not `input_size`, or the state is not one tensor (B, size) a field.
        """
        if inputs.dim() not in (1, 2) or inputs.shape[-1] != self.input_size:
            raise ShapeError(
                f"{type(self).__name__}: inputs must be (B, {self.input_size}) or ({self.input_size},), "
                f"got {tuple(inputs.shape)}; for (T, B, {self.input_size}) use tt.unfold"
            )
        single = inputs.dim() == 1
        batch = inputs[None] if single else inputs  # (B, I)
        if single and state is not None:
            state = [field[None] for field in ([state] if isinstance(state, Tensor) else state)]
        equations = self.bind()
        after, _ = equations.advance(equations.project_inputs(batch), self._state(state, len(batch), batch), None)
        return self.State(*(field[0] for field in after)) if single else after
