"""Native steps whose states stand outside: those of a stepper that keeps them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_models import CELLS, some_ends, some_layers

from throughtime.errors import EngineError, ShapeError
from throughtime.kernels.native import library
from throughtime.kernels.native.generation import Ends, LayerState, PackedModel, StatelessStepper, Stepper

pytestmark = pytest.mark.skipif(bool(library.missing_reason()), reason=str(library.missing_reason()))


@pytest.mark.parametrize("rows", [1, 3, 15, 16, 40, 130])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stateless_steps_are_those_of_the_picked_rows(isa: str, cell: str, precision: str, rows: int) -> None:
    layers = some_layers(cell, 33, [150, 150, 150], zoneout=(0.1, 0.2), peepholes=cell == "lstm")
    model = PackedModel(layers, residual=True, precision=precision)
    stepper, stateless = Stepper(model, 20), StatelessStepper(model)
    for x in torch.randn(2, 20, 33):
        stepper.feed(x)
    before = stepper.state()
    x, picked = torch.randn(rows, 33), torch.randint(20, (rows,))
    stepper.reorder(picked)
    expected = stepper.feed(x)
    found, after = stateless.advance(x, before, picked)
    assert torch.equal(found, expected)
    for state, own in zip(stepper.state(), after, strict=True):
        assert torch.equal(state.h, own.h)
        assert own.c is None if state.c is None else torch.equal(state.c, own.c)


@pytest.mark.parametrize("vocabulary", [40, 33_000])  # with a table, and too many for one
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_stateless_steps_read_tokens_without_a_readout(isa: str, cell: str, vocabulary: int) -> None:
    layers = some_layers(cell, 20, [520, 30])
    ends = some_ends(vocabulary, layers)
    silent, speaking = PackedModel(layers, Ends(ends.embedding)), PackedModel(layers, ends)
    assert not silent.has_readout
    assert silent.has_table == speaking.has_table == (vocabulary == 40)
    stepper, stateless = Stepper(speaking, 50), StatelessStepper(silent)
    tokens, picked = torch.randint(vocabulary, (2, 50)), torch.randint(50, (50,))
    stepper.read(tokens[:1])
    before = stepper.state()
    stepper.reorder(picked)
    stepper.read(tokens[1:])
    found, after = stateless.advance(tokens[1], before, picked)
    assert torch.equal(found, after[-1].h)
    assert all(torch.equal(own.h, state.h) for own, state in zip(after, stepper.state(), strict=True))


def test_stateless_steps_depend_on_neither_threads_nor_other_rows(isa: str, threads: Callable[[int], None]) -> None:
    layers = some_layers("lstm", 100, [600, 600])
    model = PackedModel(layers)
    before = [LayerState(torch.randn(70, 600), torch.randn(70, 600)) for _ in layers]
    x, picked = torch.randn(90, 100), torch.randint(70, (90,))
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(StatelessStepper(model).advance(x, before, picked)[0])
    assert all(torch.equal(results[0], other) for other in results[1:])
    stateless = StatelessStepper(model)
    for first, last in ((0, 1), (5, 7), (30, 60), (0, 90)):
        part, _ = stateless.advance(x[first:last].contiguous(), before, picked[first:last].contiguous())
        assert torch.equal(part, results[0][first:last])


def test_a_stateless_step_of_no_rows() -> None:
    layers = some_layers("gru", 3, [4])
    before = [LayerState(torch.randn(2, 4), None)]
    h, after = StatelessStepper(PackedModel(layers)).advance(
        torch.empty(0, 3), before, torch.empty(0, dtype=torch.int64)
    )
    assert h.shape == after[0].h.shape == (0, 4)


def test_what_does_not_fit_a_stateless_step_is_refused() -> None:
    layers = some_layers("lstm", 3, [4])
    stepper = StatelessStepper(PackedModel(layers))
    x, picked = torch.randn(2, 3), torch.tensor([0, 1])
    states = [LayerState(torch.randn(2, 4), torch.randn(2, 4))]
    with pytest.raises(ShapeError, match="inputs must be"):
        stepper.advance(torch.randn(2, 5), states, picked)
    with pytest.raises(ShapeError, match="picked must be"):
        stepper.advance(x, states, picked[:1])
    with pytest.raises(ShapeError, match="c for LSTMs alone"):
        stepper.advance(x, [LayerState(states[0].h, None)], picked)
    with pytest.raises(ShapeError, match="h must be"):
        stepper.advance(x, [LayerState(torch.randn(2, 5), states[0].c)], picked)
    with pytest.raises(IndexError, match="outside of the rows"):
        stepper.advance(x, states, torch.tensor([0, 2]))
    with pytest.raises(EngineError, match="int8"):
        StatelessStepper(PackedModel(layers, precision="int8"))
    ends = some_ends(7, layers)
    reads = StatelessStepper(PackedModel(layers, Ends(ends.embedding)))
    with pytest.raises(IndexError, match="outside of the vocabulary"):
        reads.advance(torch.tensor([0, 7]), states, picked)
