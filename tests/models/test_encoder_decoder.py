"""The encoder-decoder is its equations: values and gradients against torch.nn, one sequence and one step at a time."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import throughtime as tt

TIGHT: dict[str, float] = {"rtol": 1e-10, "atol": 1e-11}
KINDS = ("additive", "dot", "general", "concat", "none")
STOPS = ("end_symbol", "bernoulli_halt", "predicted_length")
CELLS = ("rnn", "lstm", "gru")
BRIDGES = ("copy", "linear", "zeros")
COMBINATIONS = [
    (kind, stop, cell, bridge)
    for kind, stop, cell, bridge in itertools.product(KINDS, STOPS, CELLS, BRIDGES)
    if (kind, bridge) != ("none", "zeros")
]
X = torch.tensor([[1, 5, 0], [2, 5, 3], [0, 1, 3], [4, 2, 2], [3, 0, 1]])  # (S, B)
Y = torch.tensor([[1, 3, 0], [0, 3, 1], [1, 0, 4], [3, 1, 0]])  # (T, B), 2 the border
SOURCE_LENGTHS, LENGTHS = [5, 1, 3], [2, 4, 0]


def made(**keys: Any) -> Any:
    """A small model in float64, its weights far enough from zero for everything to matter."""
    torch.manual_seed(5)
    sizes = {"source_vocabulary_size": 6, "target_vocabulary_size": 5, "hidden_size": 4, "embedding_size": 3}
    model = tt.models.EncoderDecoder(**{**sizes, "border_id": 2, "max_length": 7, **keys}).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("embedding.weight"):
                parameter.mul_(10)
            elif name.endswith(("weight_coverage", "bias_ho", "halt.bias")):
                parameter.normal_()
    return model


def loss_of(model: Any, **options: Any) -> Tensor:
    found: Tensor = model((X, torch.tensor(SOURCE_LENGTHS)), targets=Y, lengths=LENGTHS, **options)
    return found


def gradients(model: Any, loss: Tensor) -> list[Tensor]:
    """Of every parameter, each step of each sequence weighted by a number of its own."""
    weight = torch.randn(loss.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    found = torch.autograd.grad((loss * weight).sum(), list(model.parameters()), materialize_grads=True)
    return list(found)


# -- the equations, by torch.nn ----------------------------------------------------------------------------------------


def torch_layer(layer: Any) -> Any:
    """The layer of torch.nn that has the same parameters, the very same."""
    kind: Any = {"RNN": torch.nn.RNN, "LSTM": torch.nn.LSTM, "GRU": torch.nn.GRU}[type(layer).__name__]
    same = kind(layer.input_size, layer.hidden_size, layer.num_layers, bidirectional=layer.bidirectional).double()
    for name, parameter in layer.named_parameters():
        setattr(same, name, parameter)
    return same


def scores(attention: Any, h: Tensor, m: Tensor, coverage: Tensor) -> Tensor:
    """The score of h (H,) and each position of m (S, H), that has been looked at so much."""
    more = torch.zeros(len(m), 1).double()
    if attention.weight_coverage is not None:
        more = coverage[:, None] * attention.weight_coverage
    if attention.kind == "dot":
        return (m + more) @ h
    if attention.kind == "general":
        return (m @ attention.weight.T + more) @ h
    if attention.kind == "additive":
        summed = attention.weight_query @ h + m @ attention.weight_memory.T + more
    else:
        summed = torch.cat([h.expand(len(m), -1), m], 1) @ attention.weight.T + more
    found: Tensor = torch.tanh(summed) @ attention.direction[0]
    return found


def begun(model: Any, joined: list[Tensor]) -> list[Tensor]:
    """The decoder's states (L, 1, H) before its first step, from the encoder's."""
    layers, maps = model.config.num_layers, iter(getattr(model, "bridge", []))
    if model.config.bridge == "zeros":
        return [torch.zeros_like(field) for field in joined]
    if model.config.bridge == "copy":
        return joined
    mapped = [[torch.tanh(next(maps)(field[layer])) for field in joined] for layer in range(layers)]
    return [torch.stack([layer[index] for layer in mapped]) for index in range(len(joined))]


def by_torch(model: Any, x: Tensor, y: Tensor) -> Tensor:
    """L(t) of one pair, as the module's equations say, by torch.nn's layers, one step after the other."""
    shape, border = model.config, model.config.border_id
    encoder, decoder = torch_layer(model.encoder), torch_layer(model.decoder)
    m, final = encoder(functional.embedding(x, model.source_embedding.weight)[:, None])
    fields = [final] if isinstance(final, Tensor) else list(final)
    joined = [field.reshape(shape.num_layers, -1, 1, field.shape[-1]).transpose(1, 2).flatten(2) for field in fields]
    m, states, summary = m[:, 0], begun(model, joined), joined[0][-1, 0]
    h_fed, coverage = torch.zeros(shape.hidden_size).double(), torch.zeros(len(x)).double()
    nats, last = [], border
    steps = len(y) + (shape.stop != "predicted_length")
    for t in range(steps):
        parts = [model.target_embedding.weight[last]]
        if shape.stop == "predicted_length":
            parts.append((torch.tensor([len(y) - t - 1]) / shape.max_length).double())  # rounded as the model's are
        if shape.input_feeding:
            parts.append(h_fed)
        out, new = decoder(torch.cat(parts)[None, None], states[0] if len(states) == 1 else tuple(states))
        h, states = out[0, 0], [new] if isinstance(new, Tensor) else list(new)
        if shape.attention != "none":
            alpha = scores(model.attention, h, m, coverage).softmax(0)
            coverage = coverage + alpha
            h = torch.tanh(model.combine.weight @ torch.cat([alpha @ m, h]))
        h_fed = h
        o = model.readout.weight_ho @ h + model.readout.bias_ho
        if shape.stop == "end_symbol":
            last = int(y[t]) if t < len(y) else border
            nats.append(-o.log_softmax(0)[last])
            continue
        # The border is none of the symbols.
        symbols = [token for token in range(len(o)) if token != border]
        log_p = dict(zip(symbols, o[symbols].log_softmax(0), strict=True))
        last = int(y[t]) if t < len(y) else border
        symbol = log_p[last] if t < len(y) else torch.zeros(()).double()
        if shape.stop == "bernoulli_halt":
            s = torch.sigmoid(model.halt.weight[0] @ h + model.halt.bias[0])
            symbol = symbol + (torch.log(1 - s) if t < len(y) else torch.log(s))
        nats.append(-symbol)
    if shape.stop == "predicted_length":
        nats.insert(0, -(model.length.weight @ summary + model.length.bias).log_softmax(0)[len(y)])
    return torch.stack(nats)


def check_against_torch(model: Any) -> None:
    found = loss_of(model)
    right = torch.zeros_like(found)
    for row, (source, length) in enumerate(zip(SOURCE_LENGTHS, LENGTHS, strict=True)):
        nats = by_torch(model, X[:source, row], Y[:length, row])
        right = right + functional.pad(nats, (0, len(found) - len(nats)))[:, None] * functional.one_hot(
            torch.tensor(row), len(LENGTHS)
        )
    torch.testing.assert_close(found, right, **TIGHT)
    for one, other in zip(gradients(model, found), gradients(model, right), strict=True):
        torch.testing.assert_close(one, other, **TIGHT)


@pytest.mark.parametrize(("kind", "stop", "cell", "bridge"), COMBINATIONS)
def test_it_is_its_equations(kind: str, stop: str, cell: str, bridge: str) -> None:
    check_against_torch(made(attention=kind, stop=stop, cell=cell, bridge=bridge))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("coverage", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_input_feeding_and_coverage_are_their_equations(kind: str, coverage: bool, layers: int) -> None:
    if kind == "none" and coverage:
        return
    cell = "gru" if layers == 1 else "lstm"
    check_against_torch(
        made(attention=kind, coverage=coverage, input_feeding=True, cell=cell, num_layers=layers, stop="bernoulli_halt")
    )


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("options", [
    {"num_layers": 3, "bridge": "linear"}, {"bidirectional": False, "num_layers": 2},
    {"tied": "target", "embedding_size": 4}, {"coverage": True, "attention": "dot"},
    {"tied": "all", "embedding_size": 4, "target_vocabulary_size": 6, "attention": "none"},
])  # fmt: skip
def test_other_shapes_are_their_equations(stop: str, options: dict[str, Any]) -> None:
    check_against_torch(made(stop=stop, **options))
