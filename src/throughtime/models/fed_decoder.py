"""A decoder with input feeding over all steps, known targets before it: one node of autograd's graph.

With x(t) the embedding of y(t-1) and what else enters, l = 1..L the layers and ⊙ masks of dropout,

    h_1(t) = cell(P x(t) + K_1 [h̃(t-1); h_1(t-1)])       h_l(t) = cell(b_l + K_l [h_{l-1}(t); h_l(t-1)])
    α(t)   = softmax_j(h_L(t)ᵀ k_j)                       c(t)   = Σ_j α_j(t) m_j
    h̃(t)   = tanh(W [c(t); h_L(t)])

P x(t) is one product over all steps, before the loop. The loop backward through time makes only what the step before
it waits for; what the weights, keys and memory get of each step is one product over all steps behind it.
`DecoderWalk` computes the same step by step, and is the reference.

Source: Luong, Pham & Manning 2015, section 3.3; Goodfellow, Bengio & Courville 2016, section 10.2.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from throughtime.errors import EngineError
from throughtime.layers import locked_mask
from throughtime.models.fed_cells import HAND_CELLS, HandCell

if TYPE_CHECKING:
    from throughtime.models.encoder_decoder import EncoderDecoder, PreparedPairs


def fed_refusal(model: EncoderDecoder, sequences: PreparedPairs) -> str | None:
    """Why the steps of a model with input feeding, looking at targets only, are walked; None where one node does."""
    shape = model.config
    what = {
        "input feeding alone": not shape.input_feeding or shape.coverage,
        "attention of kind dot and general": shape.attention not in ("dot", "general"),
        "cells without layer normalisation": shape.layer_norm,
        "no zoneout": shape.zoneout > 0,
        "engines other than the reference": shape.engine == "reference",
        "at least one step": not len(sequences.fed),
        "one precision": torch.is_autocast_enabled(sequences.fed.device.type),
        "no transforms of torch.func": torch._C._functorch.peek_interpreter_stack() is not None,
    }
    found = [name for name, missing in what.items() if missing]
    return f"the decoder as one node is for {found[0]}" if found else None


def fed_hidden(model: EncoderDecoder, sequences: PreparedPairs) -> Float[Tensor, "T B H"]:
    """h̃(1..T) as the readout sees them, of a model that `fed_refusal` lets through; masks drawn here."""
    shape, decoder, encoded = model.config, model.decoder, sequences.encoded
    assert encoded.memory is not None
    cell = HAND_CELLS[shape.cell]
    layers = [cell.weights(decoder._weights(f"_l{index}")) for index in range(shape.num_layers)]
    masks, of_inputs = _masks(model, sequences)
    x = torch.cat([model.dropout(model.target_embedding(sequences.fed)), sequences.external], -1)  # (T, B, E)
    x = x if of_inputs is None else x * of_inputs
    outside = x.shape[-1]
    projected = functional.linear(x, layers[0].inputs[:, :outside], layers[0].bias)  # (T, B, A)
    products = [torch.cat([own.inputs[:, outside * (not index) :], own.recurrent], 1)
                for index, own in enumerate(layers)]  # (A, 2H)  # fmt: skip
    states = [field for state in encoded.states for field in state]
    biases = [own.bias for own in layers[1:]]
    memory = encoded.memory
    how = _How(cell, shape.num_layers, shape.residual, masks, memory.inside)
    hidden: Tensor = _FedDecoder.apply(  # type: ignore[no-untyped-call]
        how, projected, memory.keys, memory.values, model.combine.weight, *products, *biases, *states
    )
    return hidden


class _Masks(NamedTuple):
    """Masks of dropout, None for none.

    shown (T, B, H): of h̃. between: of the outputs of each layer but the last, (T, B, H). products: of what enters each
    layer's product, [x; h(t-1)], (B, 2H).
    """

    shown: Tensor | None
    between: list[Tensor | None]
    products: list[Tensor | None]


def _masks(model: EncoderDecoder, sequences: PreparedPairs) -> tuple[_Masks, Tensor | None]:
    """The masks of one run, and that of what enters from outside (B, E)."""
    shape, layer, like = model.config, model.decoder, sequences.encoded.summary  # like (B, H)
    steps, count = len(sequences.fed), shape.num_layers
    ones = like.new_ones(()).expand(steps, *like.shape)  # (T, B, H)
    shown: Tensor | None = None
    locked = model.locked_dropout.mask(like)
    if layer.training and (model.dropout.p or locked is not None):
        shown = model.dropout(ones) * (1 if locked is None else locked)
    between: list[Tensor | None] = [None] * (count - 1)
    if layer.training and layer.dropout:
        between = [functional.dropout(ones, layer.dropout, True) for _ in between]
    products: list[Tensor | None] = [None] * count
    of_inputs = None
    if layer.training and (layer.variational_dropout or layer.recurrent_dropout):
        for index in range(count):
            width = layer.input_size if index == 0 else shape.hidden_size
            inputs = locked_mask(like, (len(like), width), layer.variational_dropout)
            recurrent = locked_mask(like, (len(like), shape.hidden_size), layer.recurrent_dropout)
            if index == 0:
                of_inputs, inputs = torch.split(inputs, [width - shape.hidden_size, shape.hidden_size], 1)
            products[index] = torch.cat([inputs, recurrent], 1)
    return _Masks(shown, between, products), of_inputs


@dataclass(frozen=True)
class _How:
    """What a run is made of besides numbers with gradients; inside (B, S), false on padding."""

    cell: HandCell
    num_layers: int
    residual: bool
    masks: _Masks
    inside: Bool[Tensor, "B S"] | None


class _Given(NamedTuple):
    """The tensors of a run: keys, values (B, S, H), W (H, 2H), K of each layer (A, 2H), h(0) and c(0) of each."""

    projected: Tensor
    keys: Tensor
    values: Tensor
    combine: Tensor
    products: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    states: tuple[tuple[Tensor, ...], ...]

    @classmethod
    def of(cls, how: _How, tensors: tuple[Tensor, ...]) -> _Given:
        count, fields = how.num_layers, how.cell.fields
        projected, keys, values, combine = tensors[:4]
        products, biases, rest = tensors[4:][:count], tensors[4 + count :][: count - 1], tensors[3 + 2 * count :]
        states = tuple(rest[layer * fields : (layer + 1) * fields] for layer in range(count))
        return cls(projected, keys, values, combine, products, biases, states)


class _Kept(NamedTuple):
    """What the forward pass leaves for the backward one.

    entered: [x; h(t-1)] of each layer (T, B, 2H). gates: a of each (T, B, A), as its cell left it. states: of each
    layer and field, the first one in front (T+1, B, H). queries: [c; h_L] (T, B, 2H). weights: α (T, B, S).
    tilde: h̃ before its mask (T, B, H).
    """

    entered: list[Tensor]
    gates: list[Tensor]
    states: list[list[Tensor]]
    queries: Tensor
    weights: Tensor
    tilde: Tensor

    @classmethod
    def empty(cls, how: _How, given: _Given) -> _Kept:
        steps, batch, width = given.projected.shape
        new, size, positions = given.projected.new_empty, given.combine.shape[0], given.values.shape[1]
        layers = range(how.num_layers)
        return cls(
            [new(steps, batch, 2 * size) for _ in layers],
            [new(steps, batch, width) for _ in layers],
            [[new(steps + 1, batch, size) for _ in range(how.cell.fields)] for _ in layers],
            new(steps, batch, 2 * size),
            new(steps, batch, positions),
            new(steps, batch, size),
        )


class _FedDecoder(torch.autograd.Function):
    """(how, projected, keys, values, combine, K of each layer, b of each but the first, states) → h̃ (T, B, H)."""

    @staticmethod
    def forward(ctx: Any, how: _How, *tensors: Tensor) -> Tensor:
        given = _Given.of(how, tensors)
        kept = _Kept.empty(how, given)
        for layer, first in enumerate(given.states):
            for field, value in enumerate(first):
                kept.states[layer][field][0] = value
        shown = torch.empty_like(kept.tilde) if how.masks.shown is not None else kept.tilde
        fed = torch.zeros_like(kept.tilde[0])  # (B, H)
        for t in range(len(shown)):
            h = _layers_forward(how, given, kept, t, fed)
            _attend(how, given, kept, t, h)
            fed = torch.mm(kept.queries[t], given.combine.mT, out=kept.tilde[t]).tanh_()
            if how.masks.shown is not None:
                fed = torch.mul(fed, how.masks.shown[t], out=shown[t])
        ctx.how, ctx.kept = how, kept
        ctx.save_for_backward(*tensors)
        return shown.clone() if shown is kept.tilde else shown

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise EngineError(
                "EncoderDecoder: input feeding as one node has first derivatives only; for second ones make the model "
                'with engine="reference"'
            )
        return (None, *_through_time(ctx.how, _Given.of(ctx.how, ctx.saved_tensors), ctx.kept, gradient))


def _layers_forward(how: _How, given: _Given, kept: _Kept, t: int, x: Tensor) -> Tensor:
    """Step t of all layers: h_L (B, H)."""
    size = x.shape[1]
    for layer, product in enumerate(given.products):
        entered, states = kept.entered[layer][t], kept.states[layer]
        entered[:, :size], entered[:, size:] = x, states[0][t]
        if (mask := how.masks.products[layer]) is not None:
            entered.mul_(mask)
        a = torch.addmm(given.biases[layer - 1] if layer else given.projected[t], entered, product.mT,
                        out=kept.gates[layer][t])  # (B, A)  # fmt: skip
        how.cell.forward(a, [field[t] for field in states], [field[t + 1] for field in states])
        h = states[0][t + 1]
        x = h + x if layer and how.residual else h
        if layer < how.num_layers - 1 and (between := how.masks.between[layer]) is not None:
            x = x * between[t]
    return x


def _attend(how: _How, given: _Given, kept: _Kept, t: int, h: Tensor) -> None:
    """α(t) and [c(t); h(t)], into their places."""
    size = h.shape[1]
    scores = torch.bmm(h[:, None], given.keys.mT)[:, 0]  # (B, S)
    weights = kept.weights[t]
    if how.inside is not None:
        scores.masked_fill_(~how.inside, torch.finfo(scores.dtype).min)
    torch.softmax(scores, -1, out=weights)
    if how.inside is not None:
        weights.mul_(how.inside)  # a source without a position has no weights
    queries = kept.queries[t]
    queries[:, :size], queries[:, size:] = torch.bmm(weights[:, None], given.values)[:, 0], h


def _through_time(how: _How, given: _Given, kept: _Kept, gradient: Tensor) -> list[Tensor]:
    """The gradients of the tensors of a run, in their order."""
    steps, size = len(gradient), gradient.shape[2]
    d_gates = [torch.empty_like(a) for a in kept.gates]
    d_tilde, d_context = torch.empty_like(kept.tilde), torch.empty_like(kept.tilde)  # before tanh; of c(t)
    d_scores = torch.empty_like(kept.weights)
    d_states = [[torch.zeros_like(field[0]) for field in layer] for layer in kept.states]
    d_fed = torch.zeros_like(gradient[0])
    for t in reversed(range(steps)):
        d = gradient[t] + d_fed  # (B, H)
        if how.masks.shown is not None:
            d = d * how.masks.shown[t]
        torch.ops.aten.tanh_backward.grad_input(d, kept.tilde[t], grad_input=d_tilde[t])
        d_query = torch.mm(d_tilde[t], given.combine)  # (B, 2H)
        d_context[t] = d_query[:, :size]
        d_weights = torch.bmm(d_query[:, None, :size], given.values.mT)[:, 0]  # (B, S)
        alpha = kept.weights[t]
        torch.sub(d_weights, (alpha * d_weights).sum(-1, keepdim=True), out=d_scores[t]).mul_(alpha)
        d_h = torch.bmm(d_scores[t][:, None], given.keys)[:, 0].add_(d_query[:, size:])  # (B, H)
        d_fed = _layers_backward(how, given, kept, t, d_h, d_gates, d_states)
    h = kept.queries[..., size:]  # (T, B, H)
    return [
        d_gates[0],
        torch.bmm(d_scores.permute(1, 2, 0), h.transpose(0, 1)),
        torch.bmm(kept.weights.permute(1, 2, 0), d_context.transpose(0, 1)),
        _summed(d_tilde, kept.queries),
        *(_summed(d_a, entered) for d_a, entered in zip(d_gates, kept.entered, strict=True)),
        *(d_a.sum((0, 1)) for d_a in d_gates[1:]),
        *(field for layer in d_states for field in layer),
    ]


def _layers_backward(
    how: _How, given: _Given, kept: _Kept, t: int, d_x: Tensor, d_gates: list[Tensor], d_states: list[list[Tensor]]
) -> Tensor:
    """Step t of all layers, backward, from dL/dh_L: dL/dh̃(t-1); `d_states` become those of t-1."""
    size = d_x.shape[1]
    for layer in reversed(range(how.num_layers)):
        if layer < how.num_layers - 1 and (between := how.masks.between[layer]) is not None:
            d_x = d_x * between[t]
        states, d_a = kept.states[layer], d_gates[layer][t]
        d_new = [d_states[layer][0] + d_x, *d_states[layer][1:]]
        old, new = [field[t] for field in states], [field[t + 1] for field in states]
        direct = how.cell.backward(kept.gates[layer][t], old, new, d_new, d_a)
        d_entered = torch.mm(d_a, given.products[layer])  # (B, 2H)
        if (mask := how.masks.products[layer]) is not None:
            d_entered.mul_(mask)
        through = [d_entered[:, size:], *[None] * (how.cell.fields - 1)]
        d_states[layer] = [_sum_of(one, other) for one, other in zip(direct, through, strict=True)]
        below = d_entered[:, :size]
        d_x = below + d_x if layer and how.residual else below
    return d_x


def _sum_of(one: Tensor | None, other: Tensor | None) -> Tensor:
    """The sum of those that there are."""
    if one is None or other is None:
        found = other if one is None else one
        assert found is not None
        return found
    return one + other


def _summed(left: Float[Tensor, "T B O"], right: Float[Tensor, "T B I"]) -> Float[Tensor, "O I"]:
    """Σ_t Σ_b left right ᵀ: what a matrix gets of all steps, as one product."""
    return left.flatten(0, 1).mT @ right.flatten(0, 1)
