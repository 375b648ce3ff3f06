"""The echo state network: a recurrent network whose recurrence is drawn, not learned.

    h(t) = (1 - a) h(t-1) + a tanh(b + W h(t-1) + U x(t))      leak rate a; 10.8 with leaky units, α = 1 - a
    ŷ(t) = c + V [h(t) ; x(t)]                                 readout, by ridge regression

W is sparse, its other entries uniform, and scaled so that its spectral radius max |λ(W)| is what was asked; U and b are
uniform in ± `input_scaling`. The radius sets how long the past echoes: with linear units a perturbation of h would grow
or shrink by it at each step (section 10.8); tanh shrinks it further, so that radii around and even above 1 can serve.
Source: Goodfellow, Bengio & Courville 2016, section 10.8; Jaeger 2003; Jaeger & Haas 2004; Lukoševičius & Jaeger 2009.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from throughtime.cells import LeakyCell
from throughtime.configuration import Section, validate
from throughtime.errors import ShapeError, UsageError
from throughtime.models.model import Model
from throughtime.models.ridge import RidgeMoments
from throughtime.recurrence import checked_lengths, unfold


class EchoStateConfig(Section):
    """What an echo state network is drawn from."""

    input_size: int = Field(1, ge=1, description="numbers in x(t)")
    output_size: int = Field(1, ge=1, description="numbers in y(t)")
    hidden_size: int = Field(500, ge=1, description="units of the reservoir")
    spectral_radius: float = Field(0.9, ge=0, description="largest absolute value of an eigenvalue of W")
    input_scaling: float = Field(1.0, ge=0, description="entries of U and b are uniform in ± this")
    leak_rate: float = Field(
        1.0, gt=0, le=1, description="share of a unit's value that is new at each step; 1: no leak"
    )
    sparsity: float = Field(0.9, ge=0, lt=1, description="probability that an entry of W is zero")
    ridge: float = Field(1e-6, ge=0, description="λ, added to the diagonal of the readout's sums of squares")
    washout: int = Field(100, ge=0, description="first steps of each sequence that the readout does not learn from")
    seed: int = Field(0, ge=0, description="seed of W, U and b")
    engine: str = Field("auto", description='engine of the recurrence: "auto" or the name of one')


class EchoState(NamedTuple):
    """h(t) (B, H), and how many steps each sequence has seen (B,), for the washout."""

    h: Tensor
    steps: Tensor


class EchoStateNetwork(Model):
    """A fixed random recurrence and a readout that one pass over the data trains.

        >>> import torch, throughtime as tt
        >>> series = torch.sin(torch.arange(600) / 5)[:, None, None]                  # (T, B, 1)
        >>> model = tt.models.EchoStateNetwork(hidden_size=50, input_scaling=0.5)
        >>> model = model.fit([(series[:-1], series[1:])])
        >>> future, _ = model.generate(series[:300], 100)
        >>> bool((future - series[300:400]).abs().max() < 1e-2)
        True

    All is computed in float64: a readout that tells states apart by their last digits needs them. There are no
    parameters, only buffers, which `save` and `load` keep; the same configuration draws the same network.

    Raises:
        ConfigError: unknown keys or values out of range, all at once.
        UsageError: the W drawn has no eigenvalue but zero, so that no radius can be given to it.
    Source: Goodfellow, Bengio & Courville 2016, section 10.8.
    """

    Config = EchoStateConfig
    weight_ho: Tensor
    bias_ho: Tensor
    fitted: Tensor

    def __init__(self, config: EchoStateConfig | None = None, **keys: Any) -> None:
        super().__init__(config if config is not None else validate(EchoStateConfig, keys, where="EchoStateNetwork"))
        config = self.config
        self.cell = _reservoir(config)
        features = config.hidden_size + config.input_size
        self.register_buffer("weight_ho", torch.zeros(config.output_size, features, dtype=torch.float64))
        self.register_buffer("bias_ho", torch.zeros(config.output_size, dtype=torch.float64))
        self.register_buffer("fitted", torch.tensor(False))
        self.moments = RidgeMoments(features, config.output_size)

    # -- learning ------------------------------------------------------------------------------------------------------

    def fit(self, batches: Iterable[Sequence[Any]], *, stream: bool = False) -> EchoStateNetwork:
        """Learn the readout from (inputs (T, B, I), targets (T, B, O)) or (inputs, targets, lengths), in one pass.

        With `stream` each batch goes on where the one before it ended, row by row; otherwise each holds sequences of
        its own. What was learned before is forgotten.

        Raises:
            ShapeError: tensors that do not fit.
            UsageError: too little data for the configuration's `ridge` and `washout`.
        """
        self.moments = RidgeMoments(self.weight_ho.shape[1], self.config.output_size, device=self.weight_ho.device)
        state: EchoState | None = None
        for inputs, targets, *lengths in batches:
            state = self.partial_fit(
                inputs, targets, state if stream else None, lengths=lengths[0] if lengths else None
            )
        return self.solve()

    def partial_fit(
        self,
        inputs: Float[Tensor, "T B I"],
        targets: Float[Tensor, "T B O"],
        state: EchoState | None = None,
        *,
        lengths: Int[Tensor, " B"] | Sequence[int] | None = None,
    ) -> EchoState:
        """Add some data to the sums that `solve` makes the readout of; the state with which the sequences go on.

        The sums (`moments`) are not saved with the model.

        Raises:
            ShapeError: tensors that do not fit.
        """
        config = self.config
        inputs, lengths, inside = self._checked(inputs, lengths)
        expected = (*inputs.shape[:2], config.output_size)
        if targets.shape != expected:
            raise ShapeError(f"EchoStateNetwork: targets must be {expected}, got {tuple(targets.shape)}")
        before = self._initial(inputs) if state is None else state
        with torch.no_grad():
            features, after = self._features(inputs, before, lengths)
        t = torch.arange(len(inputs), device=inputs.device)[:, None]  # (T, 1)
        used = inside & (t + before.steps >= config.washout)  # (T, B)
        self.moments.add(features[used], targets[used])
        return after

    def solve(self) -> EchoStateNetwork:
        """Make the readout the ridge regression of all that `partial_fit` was given.

        Raises:
            UsageError: too little data for the configuration's `ridge` and `washout`.
        """
        weight, bias = self.moments.solve(self.config.ridge)
        self.weight_ho.copy_(weight)
        self.bias_ho.copy_(bias)
        self.fitted.fill_(True)
        return self

    # -- use -----------------------------------------------------------------------------------------------------------

    def predict(
        self,
        inputs: Float[Tensor, "T B I"],
        state: EchoState | None = None,
        *,
        lengths: Int[Tensor, " B"] | Sequence[int] | None = None,
    ) -> tuple[Float[Tensor, "T B O"], EchoState]:
        """ŷ(1..τ) (T, B, O), zero behind a length, and the state after each sequence's last step.

        Raises:
            ShapeError: inputs, state or lengths that do not fit.
            UsageError: the readout has not been learned.
        """
        if not bool(self.fitted):
            raise UsageError("EchoStateNetwork: expected a readout that has been learned, got none; call fit() first")
        inputs, lengths, inside = self._checked(inputs, lengths)
        features, after = self._features(inputs, self._initial(inputs) if state is None else state, lengths)
        predictions = functional.linear(features, self.weight_ho, self.bias_ho)  # (T, B, O)
        return torch.where(inside[..., None], predictions, 0), after

    def forward(self, inputs: Tensor, state: EchoState | None = None, **options: Any) -> tuple[Tensor, EchoState]:
        """As `predict`."""
        return self.predict(inputs, state, **options)

    def generate(
        self, prompt: Float[Tensor, "T B I"], steps: int, state: EchoState | None = None
    ) -> tuple[Float[Tensor, "S B O"], EchoState]:
        """Run freely: after the prompt, each prediction is the next input; the predictions, and the last state.

        The network must have been fitted to predict its next input. The first of the outputs (steps, B, O) follows the
        prompt's last step; the state is the one before the last output is fed back.

        Raises:
            ShapeError: an empty prompt, one that does not fit, or outputs of another size than inputs.
            UsageError: the readout has not been learned.
        """
        config = self.config
        if config.input_size != config.output_size:
            raise ShapeError(
                f"EchoStateNetwork: to feed outputs back, output_size must be input_size={config.input_size}, "
                f"got {config.output_size}"
            )
        if not len(prompt):
            raise ShapeError("EchoStateNetwork: the prompt must have at least one step, got none")
        if steps < 1:
            raise UsageError(f"EchoStateNetwork: steps must be at least 1, got {steps}")
        predictions, state = self.predict(prompt, state)
        outputs = [predictions[-1:]]  # (1, B, O)
        for _ in range(steps - 1):
            predictions, state = self.predict(outputs[-1], state)
            outputs.append(predictions)
        return torch.cat(outputs), state

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _features(self, inputs: Tensor, before: EchoState, lengths: Tensor | None) -> tuple[Tensor, EchoState]:
        """[h(t) ; x(t)] (T, B, H + I), and the state after each sequence's last step."""
        h, final = unfold(self.cell, inputs, (before.h,), lengths=lengths, engine=self.config.engine)
        taken = len(inputs) if lengths is None else lengths
        return torch.cat([h, inputs], -1), EchoState(final.h, before.steps + taken)

    def _initial(self, inputs: Tensor) -> EchoState:
        batch = inputs.shape[1]
        h = inputs.new_zeros(batch, self.config.hidden_size)
        return EchoState(h, torch.zeros(batch, dtype=torch.int64, device=inputs.device))

    def _checked(self, inputs: Tensor, lengths: Any) -> tuple[Tensor, Tensor | None, Tensor]:
        """Inputs in the network's type, zero behind a length; the lengths; and true (T, B) within them."""
        size = self.config.input_size
        if inputs.dim() != 3 or inputs.shape[2] != size:
            raise ShapeError(f"EchoStateNetwork: inputs must be (T, B, {size}), got {tuple(inputs.shape)}; "
                             "the time axis comes first")  # fmt: skip
        inputs = inputs.to(self.weight_ho.dtype)
        lengths = checked_lengths(lengths, inputs, who="EchoStateNetwork")
        if lengths is None:
            return inputs, None, inputs.new_ones(inputs.shape[:2], dtype=torch.bool)
        inside = torch.arange(len(inputs), device=inputs.device)[:, None] < lengths  # (T, B)
        return torch.where(inside[..., None], inputs, 0), lengths, inside


def spectral_radius(matrix: Float[Tensor, "H H"]) -> float:
    """max |λ| over all eigenvalues λ of the matrix."""
    return float(torch.linalg.eigvals(matrix).abs().max())


def _reservoir(config: EchoStateConfig) -> LeakyCell:
    """The cell whose weights are drawn and then stay: buffers, in float64."""
    with torch.random.fork_rng(devices=[]):  # what the cell draws for itself is not used, and not used up
        cell = LeakyCell(config.input_size, config.hidden_size, 1 - config.leak_rate).double()
    for name, parameter in list(cell.named_parameters()):
        delattr(cell, name)
        cell.register_buffer(name, parameter.detach())
    cell.fixed_alpha.fill_(1 - config.leak_rate)  # not as float32 has it
    generator = torch.Generator().manual_seed(config.seed)
    cell.weight_hh.uniform_(-1, 1, generator=generator)
    cell.weight_hh.mul_(torch.rand(cell.weight_hh.shape, generator=generator) >= config.sparsity)
    for drawn in (cell.weight_ih, cell.bias_ih):
        drawn.uniform_(-config.input_scaling, config.input_scaling, generator=generator)
    radius = spectral_radius(cell.weight_hh)
    # A W without cycles has eigenvalues of exactly zero, as LAPACK orders it to a triangle first.
    if radius == 0 and config.spectral_radius > 0:
        raise UsageError(
            f"EchoStateNetwork: the W of {config.hidden_size} units drawn with sparsity={config.sparsity} and "
            f"seed={config.seed} has spectral radius 0; set sparsity lower, or another seed"
        )
    cell.weight_hh.mul_(config.spectral_radius / radius if radius else 0.0)
    return cell
