"""How gradients fare on their way back through time: by lag, by the Jacobians they pass, by the gates they meet.

    δ(t, k) = ∂L(t)/∂h(t-k) = ∂L(t)/∂h(t) · ∂h(t)/∂h(t-1) · … · ∂h(t-k+1)/∂h(t-k)

Where ‖δ(t, k)‖ falls with k as a power, what happened k steps ago cannot be learnt (it vanishes); where it rises, a
step of gradient descent leaps (it explodes). The losses of many t travel back together: each is a row of its own in one
batch, aligned by lag, so that K steps of the recursion serve them all.

Source: Goodfellow, Bengio & Courville 2016, section 10.7; Pascanu, Mikolov & Bengio 2013; Karpathy, Johnson & Fei-Fei
2015 (saturated gates).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from throughtime.errors import ShapeError, UsageError
from throughtime.recurrence.jacobians import Link, links, rescale, singular_values
from throughtime.recurrence.lengths import inside

LossOfOutputs = Callable[[Tensor], Tensor]

# A gate is saturated where it lets through almost nothing or almost everything (Karpathy et al. 2015).
CLOSED, OPEN = 0.1, 0.9
_SIGMOIDS = {"lstm": ("i", "f", "o"), "gru": ("r", "z")}
_CANDIDATES = {"lstm": "g", "gru": "n"}


@dataclass(frozen=True, eq=False)
class Saturation:
    """How often each unit of a gate stands at an end of its range, as a share of all steps; each (H,).

    low: below 0.1 for a gate (a sigmoid), below -0.9 for a tanh. high: above 0.9.
    """

    low: Tensor
    high: Tensor


@dataclass(frozen=True, eq=False)
class LayerFlow:
    """The flow through one layer.

    where: the layer's name.
    norms: for each field of the state, the output h first, ‖∂L(t)/∂h(t-k)‖ of each sampled t, sequence and lag, float64
        (N, B, K + 1); NaN where t - k lies before the sequence's beginning, t behind its end, or where L(t) says
        nothing of h(t). "c" of an LSTM is ‖∂L(t)/∂c(t-k)‖ with h(t-k) held: what the memory alone carries on.
    singular_values: the largest of ∂h(t)/∂h(t-k), this layer's part alone, of the last sampled t, float64 (lags, B, R);
        None where they were not asked for.
    saturation: by gate; "h" for units that are a tanh themselves.
    """

    where: str
    norms: Mapping[str, Tensor]
    singular_values: Tensor | None
    saturation: Mapping[str, Saturation]

    @property
    def of_output(self) -> Tensor:
        """The norms of h, (N, B, K + 1)."""
        return next(iter(self.norms.values()))

    @property
    def by_lag(self) -> Tensor:
        """‖∂L(t)/∂h(t-k)‖, the mean over sampled t and sequences, (K + 1,)."""
        return torch.nanmean(self.of_output.flatten(0, 1), 0)

    @property
    def by_step(self) -> Tensor:
        """‖∂L(t)/∂h(t-k)‖, the mean over sequences, (N, K + 1): a heat map."""
        return torch.nanmean(self.of_output, 1)

    def quantiles(self, shares: Sequence[float]) -> Tensor:
        """The quantiles of ‖∂L(t)/∂h(t-k)‖ over sampled t and sequences, (len(shares), K + 1)."""
        norms = self.of_output.flatten(0, 1)
        return torch.nanquantile(norms, torch.tensor(shares, dtype=norms.dtype, device=norms.device), 0)

    @property
    def median(self) -> Tensor:
        """The median of the norms over sampled t and sequences, (K + 1,)."""
        return self.quantiles([0.5])[0]

    @property
    def median_singular_values(self) -> Tensor | None:
        """The medians over sequences, (lags, R)."""
        return None if self.singular_values is None else self.singular_values.nanquantile(0.5, 1)


@dataclass(frozen=True, eq=False)
class Flow:
    """What `tt.bptt.flow` has measured; printed, it is a table.

    at: the sampled t, counted from 0, (N,).
    jacobian_lags: the lags of the singular values.
    layers: a `LayerFlow` for each layer, the bottom one first; `by_lag`, `by_step` are those of the last.
    """

    at: Tensor
    jacobian_lags: tuple[int, ...]
    layers: tuple[LayerFlow, ...]

    @property
    def by_lag(self) -> Tensor:
        """‖∂L(t)/∂h(t-k)‖ of the last layer, the mean over sampled t and sequences, (K + 1,)."""
        return self.layers[-1].by_lag

    @property
    def by_step(self) -> Tensor:
        """‖∂L(t)/∂h(t-k)‖ of the last layer by sampled t and lag, the mean over sequences, (N, K + 1)."""
        return self.layers[-1].by_step

    def as_dict(self) -> dict[str, Any]:
        """Everything but the single sequences, as JSON can hold it; None for what does not exist."""
        return {"at": self.at.tolist(), "layers": [_layer_as_dict(layer, self.jacobian_lags) for layer in self.layers]}

    def summary(self) -> dict[str, float]:
        """A few numbers for a log: mean norms at doubling lags, and the shares of saturated gates, of each layer."""
        found: dict[str, float] = {}
        for number, layer in enumerate(self.layers):
            by_lag = layer.by_lag.tolist()
            norms = {f"layer_{number}.lag_{lag}": by_lag[lag] for lag in (0, *_doubling(len(by_lag) - 1))}
            found |= {name: norm for name, norm in norms.items() if math.isfinite(norm)}
            for gate, share in layer.saturation.items():
                found[f"layer_{number}.{gate}_low"] = float(share.low.mean())
                found[f"layer_{number}.{gate}_high"] = float(share.high.mean())
        return found

    def __str__(self) -> str:
        return "\n".join(line for layer in self.layers for line in _table(layer, self.jacobian_lags))


def _doubling(longest: int) -> list[int]:
    """1, 2, 4, … and the longest itself."""
    lags = [2**power for power in range(longest.bit_length()) if 2**power <= longest]
    return lags if not lags or lags[-1] == longest else [*lags, longest]


def _layer_as_dict(layer: LayerFlow, lags: Sequence[int]) -> dict[str, Any]:
    medians = layer.median_singular_values
    shares = {name: {"low": float(s.low.mean()), "high": float(s.high.mean())} for name, s in layer.saturation.items()}
    return {
        "where": layer.where,
        "by_lag": _finite(layer.by_lag),
        "median": _finite(layer.median),
        "by_step": _finite(layer.by_step),
        "by_lag_of": {field: _finite(torch.nanmean(norms.flatten(0, 1), 0)) for field, norms in layer.norms.items()},
        "singular_values": None if medians is None else dict(zip(map(str, lags), _finite(medians), strict=True)),
        "saturation": shares,
    }


def _finite(values: Tensor) -> list[Any]:
    if values.dim() > 1:
        return [_finite(row) for row in values]
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _table(layer: LayerFlow, lags: Sequence[int]) -> list[str]:
    """Lines of a table: a few lags, then the gates."""
    low, middle, high = layer.quantiles([0.1, 0.5, 0.9])
    medians = layer.median_singular_values
    heads = ["lag", "mean", "10 %", "median", "90 %"]
    heads += [] if medians is None else [f"σ{index + 1}" for index in range(medians.shape[1])]
    lines = [f"{layer.where}: ‖∂L(t)/∂h(t−k)‖ by lag k", "".join(f"{head:>11}" for head in heads)]
    for lag in (0, *_doubling(len(middle) - 1)):
        values = [float(column[lag]) for column in (layer.by_lag, low, middle, high)]
        if medians is not None and lag in lags:
            values += medians[lags.index(lag)].tolist()
        lines.append(f"{lag:>11}" + "".join(f"{value:>11.2e}" for value in values))
    for name, share in layer.saturation.items():
        lines.append(f"{name} saturated: {float(share.low.mean()):.1%} low, {float(share.high.mean()):.1%} high")
    return lines


def flow(
    layer: Any,
    inputs: Any,
    loss: LossOfOutputs | None = None,
    *,
    state: Any = None,
    lengths: Any = None,
    resets: Any = None,
    at: int | Sequence[int] = 16,
    max_lag: int | None = None,
    jacobians: int = 0,
    seed: int = 0,
) -> Flow:
    """Measure how gradients flow back through a `tt.Cell`, or a layer of `tt.nn` in evaluation mode.

    Args:
        layer: what is measured; its layers one by one, those above included in the way.
        inputs: as the layer takes them, and so
        state: what it begins with,
        lengths: the number of steps of each sequence,
        resets: and where sequences begin anew.
        loss: of outputs (T, B, H), time first, the losses L(t) (T, B), each of h(t) alone. When missing, L(t) is the
            product of h(t) and a random direction of length 1: how an average gradient fares.
        at: which losses: how many, evenly spaced over time up to the last step, or the very t, counted from 0.
        max_lag: the longest lag; when missing, as far as t reaches.
        jacobians: how many leading singular values of ∂h(t)/∂h(t-k) to find, of the last sampled t, at lags 1, 2, 4, …
        seed: of the random directions.

    Raises:
        UsageError: something that has no time steps, a bidirectional layer, or t and lags out of range.
        ShapeError: inputs that do not fit, or a loss that is not (T, B).
    """
    chain = links(layer, inputs, state, lengths=lengths, resets=resets)
    outputs = _outputs(chain, residual=getattr(layer, "residual", False))
    generator = torch.Generator().manual_seed(seed)
    if loss is None:
        d_outputs = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)
        d_outputs = d_outputs / d_outputs.norm(dim=-1, keepdim=True)
    else:
        d_outputs = _gradient(loss, outputs)
    return measure(layer, chain, d_outputs, at=at, max_lag=max_lag, jacobians=jacobians, generator=generator)


def _outputs(chain: Sequence[Link], *, residual: bool) -> Tensor:
    """What the layers put out, (T, B, H), of the states of their links."""
    last: Tensor = chain[-1].states[0]
    return last + chain[-1].call.inputs if residual and len(chain) > 1 else last


def _gradient(loss: LossOfOutputs, outputs: Tensor) -> Tensor:
    """∂L(t)/∂h(t) of every t, (T, B, H).

    Raises:
        ShapeError: the losses are not one for each step and sequence.
    """
    leaf = outputs.detach().requires_grad_()
    with torch.enable_grad():
        losses = loss(leaf)
    if losses.shape != outputs.shape[:2]:
        raise ShapeError(f"flow: loss must give L(t) of shape (T, B) = {tuple(outputs.shape[:2])}, "
                         f"got {tuple(losses.shape)}; do not sum it over time")  # fmt: skip
    return torch.autograd.grad(losses.sum(), leaf)[0]


def measure(
    layer: Any,
    chain: Sequence[Link],
    d_outputs: Float[Tensor, "T B H"],
    *,
    at: int | Sequence[int],
    max_lag: int | None,
    jacobians: int,
    generator: torch.Generator,
) -> Flow:
    """The flow through the links of a layer, given ∂L(t)/∂(outputs at t) of every t; see `flow`.

    Raises:
        UsageError: t, lags or jacobians out of range.
    """
    times = _times(at, len(d_outputs)).to(d_outputs.device)
    longest = int(times[-1]) if max_lag is None else max_lag
    if not 0 <= longest <= int(times[-1]):
        raise UsageError(
            f"flow: the longest lag (max_lag, --lags) must lie in 0..{int(times[-1])}, the last t that is sampled, got "
            f"{max_lag}"
        )
    units = min(link.before[0].shape[-1] for link in chain)
    if not 0 <= jacobians <= units:
        raise UsageError(
            f"flow: singular values to find (jacobians, --jacobians) must lie in 0..{units}, the units of the smallest "
            f"layer, got {jacobians}"
        )
    norms = _norms(chain, d_outputs, times, longest, residual=getattr(layer, "residual", False))
    lags = _doubling(longest) if jacobians else []
    layers = []
    for link, found in zip(chain, norms, strict=True):
        values = None
        if lags:
            last = times[-1:]
            values = singular_values(link, last, lags, jacobians, block=link.names[0], generator=generator)[:, 0]
        layers.append(LayerFlow(link.where, found, values, saturation(link)))
    return Flow(times, tuple(lags), tuple(layers))


def _times(at: int | Sequence[int], steps: int) -> Tensor:
    """The sampled t, rising.

    Raises:
        UsageError: none, or one outside of the sequence.
    """
    if isinstance(at, int):
        count = min(at, steps)
        chosen = [steps * (index + 1) // count - 1 for index in range(count)]
    else:
        chosen = sorted(set(at))
    if not chosen or chosen[0] < 0 or chosen[-1] >= steps:
        raise UsageError(f"flow: at must be how many losses, 1 or more, or steps t within 0..{steps - 1}, got {at}")
    return torch.tensor(chosen)


def _norms(
    chain: Sequence[Link], d_outputs: Tensor, times: Int[Tensor, " N"], longest: int, *, residual: bool
) -> list[dict[str, Tensor]]:
    """‖∂L(t)/∂h(t-k)‖ for each layer and field of its state, each (N, B, K + 1)."""
    count, batch = len(times), d_outputs.shape[1]
    adjoints = [
        tuple(field.new_zeros(count, batch, field.shape[-1]) for field in link.before) for link in chain
    ]  # of each layer's state at t - k
    log_scale = d_outputs.new_zeros(count, batch, 1, dtype=torch.float64)
    entering = d_outputs[times].to(adjoints[-1][0].dtype)  # (N, B, H)
    some = (entering != 0).any(-1)  # (N, B)
    found = [
        {name: log_scale.new_full((count, batch, longest + 1), torch.nan) for name in link.names} for link in chain
    ]
    for lag in range(longest + 1):
        first = int((times < lag).sum())  # the losses before it have come to the beginning
        now, scale = times[first:] - lag, log_scale[first:]
        current = [tuple(field[-len(now) :] for field in state) for state in adjoints]
        above = entering if lag == 0 else torch.zeros_like(entering[first:])
        reached = some[first:] & chain[0].reaches(times[first:], torch.full_like(now, lag))  # (N', B)
        for number in reversed(range(len(chain))):
            h, *others = current[number]
            current[number] = (h + above, *others)  # ∂L(t)/∂(state of this layer at t - k)
            for name, field in zip(chain[number].names, current[number], strict=True):
                norm = field.double().norm(dim=-1) * scale[..., 0].exp()
                found[number][name][first:, :, lag] = norm.masked_fill(~reached, torch.nan)
            current[number], d_x = chain[number].vjp(now, current[number], to_inputs=number > 0)
            if number:
                above = d_x + above if residual else d_x
        flat, log_scale = rescale([field for state in current for field in state], (2,), scale)
        rest = iter(flat)
        adjoints = [tuple(next(rest) for _ in state) for state in current]
        log_scale = torch.cat([log_scale.new_zeros(first, batch, 1), log_scale])
    return found


def saturation(link: Link) -> dict[str, Saturation]:
    """How often the gates of a layer, or its tanh units, stand at an end of their range, steps of sequences alone."""
    family = link.call.cell.family
    values = {name: (getattr(link.gates, name), CLOSED) for name in _SIGMOIDS.get(family, ())}
    if family in _CANDIDATES:
        values[_CANDIDATES[family]] = (getattr(link.gates, _CANDIDATES[family]), -OPEN)
    elif family == "rnn" and getattr(link.call.cell, "nonlinearity", None) == "tanh":
        values["h"] = (link.states[0], -OPEN)
    present = inside(link.call.lengths, link.call.inputs)[..., None]  # (T, B, 1)
    total = present.sum().clamp(min=1)

    def share(condition: Tensor) -> Tensor:
        return (condition & present).sum((0, 1)) / total  # (H,)

    return {name: Saturation(share(value < low), share(value > OPEN)) for name, (value, low) in values.items()}
