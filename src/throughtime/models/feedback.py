"""Designs whose outputs enter the network again: y(t-1) → h(t).

Where y(t-1) comes from makes the difference between two ways of running one network (section 10.2.1):

- teacher forcing: it is the target, known beforehand, so that all steps are one call of the layers;
- free-running: it is what the network itself put out, so that each step waits for the last.

Between the two, any step of any sequence may take either: `own` says which. All of it is one cell through time,
`FeedbackCell`, whose state holds the last output.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import namedtuple
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from throughtime import kernels
from throughtime.cells import Cell
from throughtime.errors import UsageError
from throughtime.layers import OutputDistribution, Readout
from throughtime.models.design import Design
from throughtime.models.model import Model
from throughtime.nn import CellStack, RecurrentLayer
from throughtime.nn.states import join_state

Feedback = Literal["mean", "sample"]
Lengths = Int[Tensor, " B"] | Sequence[int] | None


class Run(NamedTuple):
    """What a network did: o(1..τ) (T, B, O), and h(1..τ) of the last layer (T, B, H).

    penalty: what training adds to the loss of each step (T, B), of networks that have such.
    """

    outputs: Tensor
    hidden: Tensor
    penalty: Tensor | None = None


class Prepared(NamedTuple):
    """Sequences as a network takes them.

    external: what enters at each step besides y(t-1), (T, B, E). targets: y(1..τ), zeros behind a sequence's end.
    states: of the layers before the first step; None for zeros. lengths: steps of each sequence (B,), None where all
    are T; inside: true (T, B) at those steps. symbols: the targets of each sequence (B,), without the step in which it
    ends, and context: what they are conditioned on, of designs that have them.
    """

    external: Tensor
    targets: Tensor
    states: Sequence[Any] | None
    lengths: Tensor | None
    inside: Tensor | None
    symbols: Tensor | None = None
    context: Tensor | None = None


class FeedbackModel(Model):
    """A model that feeds its outputs back, as the policies of training want it (`throughtime.training.inputs`).

    distribution: what the outputs are the parameters of.
    """

    distribution: OutputDistribution

    @abstractmethod
    def prepare(self, inputs: Any, targets: Tensor, lengths: Lengths = None) -> Any:
        """Checked sequences, ready for any number of runs: `Prepared`, or what has its external, lengths, inside.

        Raises:
            ShapeError: inputs, targets or lengths that do not fit.
        """

    @abstractmethod
    def run(
        self,
        sequences: Any,
        *,
        own: Bool[Tensor, "T B"] | None = None,
        feedback: Feedback = "mean",
        noise: Float[Tensor, "T B N"] | None = None,
    ) -> Run:
        """The network over all steps, by teacher forcing unless `own` says otherwise; see `FeedbackDesign.forward`.

        Raises:
            UsageError: samples without noise.
        """

    @abstractmethod
    def losses(self, sequences: Any, done: Run) -> Float[Tensor, "T B"]:
        """−log p of each step in nats, given a run; zero behind a sequence's end."""


class FeedbackDesign(Design, FeedbackModel):
    """What OutputRecurrent, ContextToSequence and ConditionalRecurrent share.

    A subclass makes `recurrent` and `readout` by `_build`, and its `prepare` says what besides y(t-1) enters.
    """

    recurrent: RecurrentLayer | CellStack
    readout: Readout

    def _build(self, external_size: int, *, extra_outputs: int = 0) -> None:
        """The layers over [external(t), features of y(t-1)], and the readout."""
        self.external_size = external_size
        self.recurrent = self._recurrent_layers(external_size + self.distribution.feedback_size)
        self.dropout = nn.Dropout(self.config.dropout)
        self.readout = self._readout(self.config.hidden_size, extra_outputs)

    # -- one run over all steps ----------------------------------------------------------------------------------------

    def forward(
        self,
        inputs: Tensor | None,
        *,
        targets: Tensor,
        lengths: Lengths = None,
        own: Bool[Tensor, "T B"] | None = None,
        feedback: Feedback = "mean",
        noise: Float[Tensor, "T B N"] | None = None,
    ) -> Float[Tensor, "T B"]:
        """The loss L(t) = −log p(y(t) | y(1..t-1), x) in nats (T, B), by teacher forcing unless `own` says otherwise.

        Args:
            inputs: x, as the design takes it.
            targets: y(1..τ), (T, B) categories or (T, B, values).
            lengths: τ of each sequence; T when missing.
            own: true where step t sees the network's own output of t-1 in place of the target's.
            feedback: what of its own output a network sees: the "mean" of p(y(t-1) | o(t-1)) (of categories their
                probabilities), through which gradients flow, or a "sample".
            noise: random numbers (T, B, `distribution.noise_size`) for samples.

        Raises:
            ShapeError: inputs, targets or lengths that do not fit.
            UsageError: samples without noise.
        """
        sequences = self.prepare(inputs, targets, lengths)
        if own is None:
            return self._taught_losses(sequences)
        return self.losses(sequences, self.run(sequences, own=own, feedback=feedback, noise=noise))

    def _taught_losses(self, sequences: Prepared) -> Float[Tensor, "T B"]:
        """The losses of all steps by teacher forcing."""
        return self.losses(sequences, self.run(sequences))

    @abstractmethod
    def prepare(self, inputs: Tensor | None, targets: Tensor, lengths: Lengths = None) -> Prepared:
        """Checked sequences, ready for any number of runs.

        Raises:
            ShapeError: inputs, targets or lengths that do not fit.
        """

    def losses(self, sequences: Prepared, done: Run) -> Float[Tensor, "T B"]:
        """−log p of each step in nats, given a run; zero behind a sequence's end."""
        return -self._step_log_prob(done.outputs, sequences.targets, sequences.inside)

    def run(
        self,
        sequences: Prepared,
        *,
        own: Bool[Tensor, "T B"] | None = None,
        feedback: Feedback = "mean",
        noise: Float[Tensor, "T B N"] | None = None,
    ) -> Run:
        """The network over all steps, by teacher forcing unless `own` says otherwise; see `forward`.

        Raises:
            UsageError: samples without noise.
        """
        fed = self._fed(sequences.targets)
        if own is None:
            return self._forced(torch.cat([sequences.external, fed], -1), sequences)
        return self._stepped(sequences, fed, own, feedback, noise)

    def run_freely(
        self,
        external: Float[Tensor, "T B E"],
        states: Sequence[Any] | None = None,
        *,
        feedback: Feedback = "mean",
        noise: Float[Tensor, "T B N"] | None = None,
    ) -> Run:
        """The network over all steps without targets: from y(1) on it sees what it put out itself.

        Raises:
            UsageError: samples without noise.
        """
        steps, batch, _ = external.shape
        nothing = external.new_zeros(steps, batch, self.distribution.feedback_size)
        own = torch.ones(steps, batch, dtype=torch.bool, device=external.device)
        return self._stepped(Prepared(external, nothing, states, None, None), nothing, own, feedback, noise)

    def _forced(self, x: Tensor, sequences: Prepared) -> Run:
        """Teacher forcing: all that enters is known, and the layers run over all steps at once."""
        h = self._through_layers(x, sequences.states, sequences.lengths)  # (T, B, H)
        return Run(self.readout(self.dropout(h)), h)

    def _stepped(self, sequences: Prepared, fed: Tensor, own: Tensor, feedback: Feedback, noise: Tensor | None) -> Run:
        """Step by step, each seeing the target or the network's own output."""
        if feedback == "sample" and noise is None:
            raise UsageError(f"{type(self).__name__}: feedback='sample' needs noise; distribution.noise(T, B) draws it")
        cell = FeedbackCell(self, sampled=feedback == "sample")
        parts = [sequences.external, fed, own[..., None].expand_as(fed).to(fed.dtype)]
        if feedback == "sample" and noise is not None:
            parts.append(noise.to(fed.dtype))
        call = cell.recurrence(torch.cat(parts, -1), cell.first(sequences.external, sequences.states))
        # h of every step is wanted too, which is a field of the state.
        done = kernels.run(replace(call, lengths=sequences.lengths, record=True), self.config.engine)
        return Run(done.outputs, done.states.hidden)

    def _fed(self, targets: Tensor) -> Float[Tensor, "T B F"]:
        """y(0..τ-1) as the network reads them: one step later than the targets, zeros first."""
        features = self.distribution.features(targets[:-1]).to(self._dtype())
        return torch.cat([features.new_zeros(min(1, len(targets)), *features.shape[1:]), features])

    def _through_layers(self, x: Tensor, states: Sequence[Any] | None, lengths: Tensor | None) -> Tensor:
        h: Tensor = self.recurrent(x, self._joined(states), lengths=lengths)[0]
        return h

    def _joined(self, states: Sequence[Any] | None) -> Any:
        """States of the layers, one NamedTuple each, in the form in which the layers take them."""
        if states is None or isinstance(self.recurrent, CellStack):
            return states
        return join_state([[state] for state in states], equal_sizes=True, batched=True)

    # -- one step --------------------------------------------------------------------------------------------------

    def first_states(self, like: Float[Tensor, "... B _"]) -> list[Any]:
        """What the layers begin with, one NamedTuple for each: zeros, unless a cell of one's own says otherwise."""
        return self.recurrent.zero_states(like.shape[-2], like)

    def advance(self, x: Float[Tensor, "B X"], states: Sequence[Any]) -> tuple[Float[Tensor, "B H"], list[Any]]:
        """One step of all layers: h(t) of the last one, and the new states."""
        after: list[Any] = []
        for index, (equations, state) in enumerate(zip(self.recurrent.step_equations(), states, strict=True)):
            if index:
                x = functional.dropout(x, self.config.dropout, self.training)
            new, _ = equations.advance(equations.project_inputs(x), state, None)
            after.append(new)
            x = new[0] + x if index and self.config.residual else new[0]
        return x, after


class FeedbackCell(Cell):
    """A design with its loop closed: one step from x(t), y(t-1) and h(t-1) to o(t), y(t) and h(t).

    An input holds, side by side, what enters from outside, the target's features, whether to look at the network's own
    output instead, and the random numbers for drawing it.
    """

    def __init__(self, design: FeedbackDesign, *, sampled: bool) -> None:
        distribution = design.distribution
        fed = distribution.feedback_size
        self.sizes = [design.external_size, fed, fed, *[distribution.noise_size] * sampled]
        super().__init__(sum(self.sizes), len(design.readout.bias_ho))
        self.design = design
        self.sampled = sampled
        self._layers = [(type(state), len(state)) for state in design.first_states(torch.zeros(1, 1))]
        fields = [f"layer_{i}_{name}" for i, (kind, _) in enumerate(self._layers) for name in kind._fields]
        self.State = namedtuple("FeedbackState", ["outputs", "fed", "hidden", *fields])  # type: ignore[misc]

    def state_sizes(self) -> tuple[int, ...]:
        """o(t), features of y(t), h(t), and the states of the layers."""
        design = self.design
        layers = [field.shape[-1] for state in design.first_states(torch.zeros(1, 1)) for field in state]
        return (self.hidden_size, design.distribution.feedback_size, design.config.hidden_size, *layers)

    def first(self, external: Float[Tensor, "T B E"], states: Sequence[Any] | None) -> Any:
        """The state before the first step: of the layers as given, or as their cells begin; zeros for the rest."""
        zeros = self.initial_state(external.shape[1], dtype=external.dtype, device=external.device)
        layers = self.design.first_states(external) if states is None else states
        return self.State(*zeros[:3], *(field for state in layers for field in state))

    def step(self, projected: Tensor, state: Any) -> Any:
        """One time step."""
        design, distribution = self.design, self.design.distribution
        external, target, own, *noise = torch.split(projected, self.sizes, -1)
        y = torch.where(own > 0.5, state.fed, target)  # (B, F)
        h, layers = design.advance(torch.cat([external, y], -1), self._grouped(state))
        o = design.readout(design.dropout(h))  # (B, O)
        shown = o[..., : distribution.size]
        if self.sampled:
            fed = distribution.features(distribution.sample(shown, *noise)).to(o.dtype)
        else:
            fed = distribution.mean(shown)
        return self.State(o, fed, h, *(field for layer in layers for field in layer))

    def _grouped(self, state: Any) -> list[Any]:
        """The states of the layers, out of the flat state."""
        rest = iter(state[3:])
        return [kind(*(next(rest) for _ in range(count))) for kind, count in self._layers]
