"""The native stepper against float64 equations, and the laws that it keeps: rows, threads and blocks change nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import CELLS, some_ends, some_layers
from torch import Tensor

from throughtime.decoding.filters import Filters
from throughtime.decoding.sampling import _draw
from throughtime.errors import EngineError, ShapeError
from throughtime.kernels.native import library
from throughtime.kernels.native.generation import (
    PRECISIONS,
    ChoiceRule,
    Ends,
    LayerState,
    LayerWeights,
    PackedModel,
    Stepper,
)

pytestmark = pytest.mark.skipif(bool(library.missing_reason()), reason=str(library.missing_reason()))


def bfloat16(tensor: Tensor) -> Tensor:
    return tensor.bfloat16().float()


def whole_numbers(rows: Tensor) -> Tensor:
    """Each row as the nearest whole numbers of -127..127 times a scale."""
    scale = rows.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    return (rows / scale).round() * scale


class Reference:
    """The equations in float64, one step at a time; `weights` and `rows` say what products do to their operands."""

    def __init__(
        self,
        layers: list[LayerWeights],
        ends: Ends | None,
        *,
        residual: bool = False,
        weights: Callable[[Tensor], Tensor] = lambda w: w,
        rows: Callable[[Tensor], Tensor] = lambda a: a,
    ) -> None:
        self.layers, self.ends, self.residual = layers, ends, residual
        self.weights, self.rows = weights, rows
        self.states: list[tuple[Tensor, Tensor]] = []

    def product(self, weight: Tensor, a: Tensor) -> Tensor:
        return self.rows(a) @ self.weights(weight).double().T

    def step(self, given: Tensor) -> Tensor:
        x = given.double() if self.ends is None else self.ends.embedding.double()[given]
        if not self.states:
            self.states = [(x.new_zeros(len(x), layer.units),) * 2 for layer in self.layers]
        for index, layer in enumerate(self.layers):
            # The table of what tokens contribute is in full precision.
            tabled = index == 0 and self.ends is not None
            of_x = x @ layer.weight_ih.double().T if tabled else self.product(layer.weight_ih, x)
            h, c = self.states[index]
            self.states[index] = self.cell(layer, of_x, self.product(layer.weight_hh, h), h, c)
            x = self.states[index][0] + x if self.residual and index else self.states[index][0]
        return x if self.ends is None else self.product(self.ends.readout, x) + self.ends.bias.double()

    @staticmethod
    def cell(layer: LayerWeights, of_x: Tensor, of_h: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        a = of_x + (0 if layer.bias_ih is None else layer.bias_ih.double())
        b = of_h + (0 if layer.bias_hh is None else layer.bias_hh.double())
        c_next = c
        if layer.cell == "lstm":
            a_i, a_f, a_g, a_o = (a + b).chunk(4, -1)
            p_i, p_f, p_o = layer.weight_peephole.double() if layer.weight_peephole is not None else (0, 0, 0)
            c_next = (a_f + p_f * c).sigmoid() * c + (a_i + p_i * c).sigmoid() * a_g.tanh()
            h_next = (a_o + p_o * c_next).sigmoid() * c_next.tanh()
        elif layer.cell == "gru":
            (x_r, x_z, x_n), (h_r, h_z, h_n) = a.chunk(3, -1), b.chunk(3, -1)
            r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
            n = (x_n + r * h_n).tanh()
            h_next = (1 - z) * n + z * h
        else:
            h_next = (a + b).tanh() if layer.cell == "rnn_tanh" else (a + b).relu()
        keep_h, keep_c = layer.zoneout
        return keep_h * h + (1 - keep_h) * h_next, keep_c * c + (1 - keep_c) * c_next


SHAPES = [
    # vocabulary, inputs, sizes
    (9, 3, [1]),
    (17, 17, [3, 17]),
    (257, 100, [129]),
    (100, 64, [128, 40, 100]),
]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("vocabulary", "inputs", "sizes"), SHAPES)
def test_log_probabilities_are_those_of_the_equations(
    isa: str, cell: str, vocabulary: int, inputs: int, sizes: list[int]
) -> None:
    layers = some_layers(cell, inputs, sizes)
    ends = some_ends(vocabulary, layers)
    tokens = torch.randint(vocabulary, (12, 5))
    for precision, rounded in (("fp32", lambda w: w), ("bf16", bfloat16)):
        reference = Reference(layers, ends, weights=rounded)
        stepper = Stepper(PackedModel(layers, ends, precision=precision), 5)
        for row in tokens:
            expected = reference.step(row).log_softmax(-1)
            torch.testing.assert_close(stepper.step(row, log_probs=True).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_bytes_are_near_the_equations_on_whole_numbers(isa: str, cell: str) -> None:
    layers = some_layers(cell, 20, [129, 65])
    ends = some_ends(33, layers)
    tokens = torch.randint(33, (10, 4))
    reference = Reference(layers, ends, weights=whole_numbers, rows=whole_numbers)
    stepper = Stepper(PackedModel(layers, ends, precision="int8"), 4)
    for row in tokens:
        # Where a value lies between two whole numbers, float32 may take the other one.
        torch.testing.assert_close(stepper.step(row).double(), reference.step(row), rtol=0, atol=4e-3)


def test_the_product_of_bytes_is_exact(isa: str) -> None:
    # Whole numbers as they are: every scale is a power of two, so that nothing is rounded on the way.
    torch.manual_seed(0)
    weight = torch.randint(-127, 128, (70, 90)).float()
    weight[:, 0] = 127
    layer = LayerWeights("rnn_relu", weight, torch.zeros(70, 70))
    x = torch.randint(-127, 128, (7, 90)).float()
    x[:, 1] = -127
    outputs = Stepper(PackedModel([layer], precision="int8"), 7).feed(x / 4)
    assert torch.equal(outputs, (x @ weight.T / 4).relu())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("extras", [{"bias": False}, {"zoneout": (0.25, 0.5)}, {"peepholes": True}])
def test_extras_of_the_cells(isa: str, precision: str, extras: dict[str, Any]) -> None:
    for cell in CELLS if "peepholes" not in extras else ("lstm",):
        layers = some_layers(cell, 12, [40, 40, 40], **extras)
        changes = {"bf16": {"weights": bfloat16}, "int8": {"weights": whole_numbers, "rows": whole_numbers}}
        reference = Reference(layers, None, residual=True, **changes.get(precision, {}))
        stepper = Stepper(PackedModel(layers, residual=True, precision=precision), 3)
        for x in torch.randn(6, 3, 12):
            atol = 1e-2 if precision == "int8" else 1e-5
            torch.testing.assert_close(stepper.feed(x).double(), reference.step(x), rtol=0, atol=atol)


def test_a_vocabulary_too_large_for_a_table(isa: str) -> None:
    layers = some_layers("lstm", 33, [128])
    ends = some_ends(33_000, layers)
    tokens = torch.randint(33_000, (40, 2))
    for precision in PRECISIONS:
        model = PackedModel(layers, ends, precision=precision)
        assert not model.has_table
        stepper = Stepper(model, 2)
        stepper.read(tokens)
        reference = Reference(layers, ends)
        expected = [reference.step(row) for row in tokens][-1].log_softmax(-1)
        atol = {"fp32": 1e-5, "bf16": 1e-2, "int8": 5e-2}[precision]
        torch.testing.assert_close(stepper.logits(log_probs=True).double(), expected, rtol=0, atol=atol)
    assert PackedModel(layers, Ends(*(part[:100] for part in ends))).has_table


# -- laws --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_row_is_the_same_among_any_number_of_rows(isa: str, cell: str, precision: str) -> None:
    layers = some_layers(cell, 20, [50, 33])
    model = PackedModel(layers, some_ends(40, layers), precision=precision)
    tokens = torch.randint(40, (5, 64))
    everyone = Stepper(model, 64)
    everyone.read(tokens)
    for first, count in ((0, 1), (5, 2), (9, 3), (20, 7), (3, 33), (63, 1)):
        some = Stepper(model, count)
        some.read(tokens[:, first : first + count].contiguous())
        assert torch.equal(some.logits(), everyone.logits()[first : first + count])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_row_is_the_same_among_the_rows_of_a_beam(isa: str, cell: str, precision: str) -> None:
    # From 16 rows on other products are made, and beyond 192 they are made for some rows at a time.
    layers = some_layers(cell, 150, [140, 140], zoneout=(0.1, 0.2), peepholes=cell == "lstm")
    model = PackedModel(layers, residual=True, precision=precision)
    everyone = Stepper(model, 400)
    inputs = torch.randn(3, 400, 150)
    outputs = torch.stack([everyone.feed(x) for x in inputs])
    for first, count in ((0, 1), (5, 15), (20, 16), (3, 40), (7, 193)):
        some = Stepper(model, count)
        for x, expected in zip(inputs, outputs, strict=True):
            found = some.feed(x[first : first + count].contiguous())
            assert torch.equal(found, expected[first : first + count])


@pytest.mark.parametrize("cell", CELLS)
def test_a_beam_follows_the_equations(isa: str, cell: str, threads: Callable[[int], None]) -> None:
    layers = some_layers(cell, 50, [129, 40])
    ends = some_ends(300, layers)
    tokens, order = torch.randint(300, (4, 200)), torch.randint(200, (200,))
    reference = Reference(layers, ends)
    results = []
    for count in (1, 2, 3):
        threads(count)
        stepper = Stepper(PackedModel(layers, ends), 200)
        stepper.read(tokens[:2])
        stepper.reorder(order)
        stepper.step(tokens[2])
        stepper.reorder(order[:20])
        results.append(stepper.step(tokens[3, :20], log_probs=True))
    for row in tokens[:2]:
        reference.step(row)
    reference.states = [(h[order], c[order]) for h, c in reference.states]
    reference.step(tokens[2])
    reference.states = [(h[order[:20]], c[order[:20]]) for h, c in reference.states]
    expected = reference.step(tokens[3, :20]).log_softmax(-1)
    torch.testing.assert_close(results[0].double(), expected, rtol=0, atol=1e-5)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("vocabulary", [40, 33_000])
def test_reading_is_stepping(isa: str, precision: str, vocabulary: int) -> None:
    layers = some_layers("lstm", 20, [128, 33])
    model = PackedModel(layers, some_ends(vocabulary, layers), precision=precision)
    for rows, steps in ((1, 70), (3, 35), (40, 3)):
        tokens = torch.randint(vocabulary, (steps, rows))
        read, stepped, mixed = (Stepper(model, rows) for _ in range(3))
        read.read(tokens)
        for row in tokens:
            last = stepped.step(row)
        mixed.read(tokens[:1])
        mixed.read(tokens[1 : steps - 1])
        mixed.read(tokens[:0])
        assert torch.equal(read.logits(), last)
        assert torch.equal(mixed.step(tokens[-1]), last)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_the_result_does_not_depend_on_the_number_of_threads(
    isa: str, cell: str, precision: str, threads: Callable[[int], None]
) -> None:
    layers = some_layers(cell, 500, [700, 700])
    ends = some_ends(900, layers)
    tokens = torch.randint(900, (9, 5))
    rule = ChoiceRule(0.9, 50, 0.95, 0.0, 1.1, -1)
    uniforms = torch.rand(5, 6, dtype=torch.float64)
    results = []
    for count in (1, 2, 3, 4):
        threads(count)
        stepper = Stepper(PackedModel(layers, ends, residual=True, precision=precision), 5)
        stepper.read(tokens)
        read = stepper.logits()
        seen = torch.zeros(5, 900, dtype=torch.bool)
        chunk = stepper.generate(6, rule, uniforms=uniforms, alive=torch.ones(5, dtype=torch.bool), seen=seen)
        results.append([read, stepper.logits(log_probs=True), seen, *chunk, stepper.state()[1].h])
    for other in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(results[0], other, strict=True))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_reordering_moves_every_part_of_the_state(isa: str, cell: str, precision: str) -> None:
    layers = some_layers(cell, 8, [20, 37], zoneout=(0.1, 0.2))
    model = PackedModel(layers, some_ends(30, layers), precision=precision)
    tokens = torch.randint(30, (6, 5))
    stepper = Stepper(model, 5)
    stepper.read(tokens)
    for indices in ([4, 3, 2, 1, 0], [0, 0, 3, 3, 3], [2], [0, 0, 0, 0, 0, 0, 0, 0, 0], [1, 2]):
        order = torch.tensor(indices)
        stepper.reorder(order)
        tokens = tokens[:, order]
        following = torch.randint(30, (1, len(order)))
        alone = Stepper(model, len(order))
        alone.read(tokens.contiguous())
        for own, other in zip(stepper.state(), alone.state(), strict=True):
            assert torch.equal(own.h, other.h)
            assert own.c is other.c is None or torch.equal(own.c, other.c)  # type: ignore[arg-type]
        assert torch.equal(stepper.step(following[0]), alone.step(following[0]))
        tokens = torch.cat([tokens, following])


@pytest.mark.parametrize("cell", CELLS)
def test_a_state_taken_over_goes_on_as_it_would_have(isa: str, cell: str) -> None:
    layers = some_layers(cell, 8, [20, 37])
    model = PackedModel(layers, some_ends(30, layers))
    tokens = torch.randint(30, (8, 3))
    first, second = Stepper(model, 3), Stepper(model, 3)
    first.read(tokens[:5])
    second.read(tokens[2:3])
    second.set_state(first.state())
    with pytest.raises(RuntimeError, match="there are no logits yet: read or step first"):
        second.logits()
    for row in tokens[5:]:
        assert torch.equal(first.step(row), second.step(row))
    first.begin(3)
    assert all((field == 0).all() for state in first.state() for field in state if field is not None)


def test_steps_write_where_they_are_told(isa: str) -> None:
    layers = some_layers("gru", 8, [20])
    stepper, other = (Stepper(PackedModel(layers), 2) for _ in range(2))
    x, out = torch.randn(2, 8), torch.empty(2, 20)
    assert stepper.feed(x, out=out) is out
    assert torch.equal(out, other.feed(x))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("part", ["weight_hh", "readout", "embedding"])
def test_what_is_no_number_stays_so(isa: str, precision: str, part: str) -> None:
    layers = some_layers("lstm", 8, [20])
    ends = some_ends(30, layers)
    damaged = {**layers[0]._asdict(), **ends._asdict()}[part]
    damaged[3, 2] = torch.nan
    stepper = Stepper(PackedModel(layers, ends, precision=precision))
    stepper.step(torch.tensor([3]))
    assert stepper.step(torch.tensor([3])).isnan().any()


# -- choosing ----------------------------------------------------------------------------------------------------------


SETTINGS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 1e-6, 0.5, 1.0, 1.7]),
        "top_k": st.sampled_from([0, 1, 3, 39, 40, 100]),
        "top_p": st.sampled_from([0.0, 0.3, 0.9, 1.0]),
        "min_p": st.sampled_from([0.0, 0.02, 0.5, 1.0]),
        "repetition_penalty": st.sampled_from([1.0, 1.5, 0.5]),
    }
)


class Given:
    """Uniform numbers that are known beforehand."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = iter(numbers.T)

    def draw(self) -> Tensor:
        return next(self.numbers)


@given(settings=SETTINGS, seed=st.integers(0, 1000), ties=st.booleans())
def test_tokens_are_chosen_as_the_filters_say(settings: dict[str, Any], seed: int, ties: bool) -> None:
    layers = some_layers("lstm", 8, [20])
    ends = some_ends(40, layers)
    torch.manual_seed(seed)
    if ties:  # each token's logit is another one's too
        half = torch.randperm(40)[:20]
        ends.readout[half] = ends.readout[half.flip(0)]
        ends.bias[half] = ends.bias[half.flip(0)]
    model = PackedModel(layers, Ends(ends.embedding, ends.readout * 4, ends.bias))
    filters = Filters(**settings)
    uniforms = torch.rand(3, 6, dtype=torch.float64)
    uniforms[0, 0] = 0.0
    uniforms[1, 1] = 1 - 2**-53
    end = int(torch.randint(40, ()))
    prompt = torch.randint(40, (4, 3))
    seen = torch.zeros(3, 40, dtype=torch.bool).scatter_(-1, prompt.T, True) if filters.counts_repetitions else None
    own_seen = None if seen is None else seen.clone()
    stepper, other = Stepper(model, 3), Stepper(model, 3)
    stepper.read(prompt)
    other.read(prompt)
    given_numbers: Any = Given(uniforms)
    alive = torch.ones(3, dtype=torch.bool)
    rule = ChoiceRule(**settings, end=end)
    chunk = stepper.generate(6, rule, uniforms=uniforms, alive=alive, seen=own_seen)
    going = torch.ones(3, dtype=torch.bool)
    logits = other.logits()
    for tokens, still, log_probs in zip(*chunk, strict=True):
        chosen = _draw(logits, seen, filters, given_numbers, end)
        expected = logits.double().log_softmax(-1).gather(-1, chosen[:, None])[:, 0].where(going, 0.0)
        chosen = chosen.where(going, end)
        going = going & (chosen != end)
        assert torch.equal(tokens, chosen)
        assert torch.equal(still, going)
        torch.testing.assert_close(log_probs, expected, rtol=0, atol=1e-12)
        if seen is not None:
            seen.scatter_(-1, chosen[:, None], True)
        logits = other.step(chosen)
    assert torch.equal(alive, going)
    assert len(chunk.tokens) == 6 or not going.any()


def test_a_chunk_goes_on_where_the_last_one_ended(isa: str) -> None:
    layers = some_layers("gru", 8, [20])
    model = PackedModel(layers, some_ends(40, layers))
    rule = ChoiceRule(1.0, 0, 1.0, 0.0, 2.0, 0)
    uniforms = torch.rand(2, 30, dtype=torch.float64)
    prompt = torch.zeros(1, 2, dtype=torch.int64)
    results = []
    for lengths in ([30], [1, 2, 4, 8, 15], [29, 1]):
        stepper = Stepper(model, 2)
        stepper.read(prompt)
        seen, alive = torch.zeros(2, 40, dtype=torch.bool), torch.ones(2, dtype=torch.bool)
        first, at, chunks = None, 0, []
        for steps in lengths:
            if not alive.any():
                break
            numbers = uniforms[:, at : at + steps].contiguous()
            chunks.append(stepper.generate(steps, rule, uniforms=numbers, alive=alive, first=first, seen=seen))
            first, at = chunks[-1].tokens[-1], at + steps
        results.append([torch.cat(part) for part in zip(*chunks, strict=True)])
    for other in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(results[0], other, strict=True))


# -- misuse ------------------------------------------------------------------------------------------------------------


def test_what_the_native_code_would_trust_is_checked() -> None:
    layers = some_layers("lstm", 8, [20])
    ends = some_ends(30, layers)
    stepper, vectors = Stepper(PackedModel(layers, ends), 2), Stepper(PackedModel(layers), 2)
    tokens = torch.tensor([1, 2])
    with pytest.raises(IndexError, match=r"30 is outside of the vocabulary, 0\.\.29"):
        stepper.step(torch.tensor([1, 30]))
    with pytest.raises(IndexError, match="-1 is outside of the vocabulary"):
        stepper.read(torch.tensor([[1, 1], [-1, 1]]))
    with pytest.raises(IndexError, match=r"2 is outside of the rows, 0\.\.1"):
        stepper.reorder(torch.tensor([2]))
    with pytest.raises(RuntimeError, match="there are no logits yet"):
        stepper.logits()
    expected = r"Stepper: tokens must be \(2,\) torch.int64, contiguous, on the CPU, got "
    for wrong, told in (
        (torch.tensor([1, 2, 3]), r"\(3,\)"),
        (tokens.int(), r"\(2,\) torch.int32"),
        (torch.tensor([1, 0, 2, 0])[::2], r"\(2,\) torch.int64 not contiguous"),
    ):
        with pytest.raises(ShapeError, match=expected + told):
            stepper.step(wrong)
    with pytest.raises(ShapeError, match=r"out must be \(2, 30\) torch.float32"):
        stepper.step(tokens, out=torch.empty(2, 29))
    with pytest.raises(ShapeError, match=r"inputs must be \(2, 8\) torch.float32"):
        vectors.feed(torch.zeros(1, 8))
    with pytest.raises(ShapeError, match="this model reads vectors, not tokens"):
        vectors.step(tokens)
    with pytest.raises(ShapeError, match="this model reads tokens, got vectors"):
        stepper.feed(torch.zeros(2, 8))
    with pytest.raises(ShapeError, match="rows must be at least 1, got 0"):
        Stepper(PackedModel(layers), 0)
    with pytest.raises(ShapeError, match="indices must name at least one row, got none"):
        stepper.reorder(torch.tensor([], dtype=torch.int64))
    with pytest.raises(ShapeError, match="layer 0 has h and c"):
        stepper.set_state([LayerState(torch.zeros(2, 20), None)])
    with pytest.raises(ShapeError, match="expected the states of 1 layers, got 0"):
        stepper.set_state([])
    rule = ChoiceRule(1.0, 0, 1.0, 0.0, 1.0, -1)
    with pytest.raises(ShapeError, match=r"uniforms must be \(2, 3\) torch.float64"):
        stepper.generate(3, rule, uniforms=torch.zeros(2, 3), alive=torch.ones(2, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"rows can have ended only where rule\.end is a token"):
        stepper.generate(
            1, rule, uniforms=torch.zeros(2, 1, dtype=torch.float64), alive=torch.zeros(2, dtype=torch.bool)
        )


def test_weights_that_do_not_fit_are_told() -> None:
    layers = some_layers("lstm", 8, [20, 20])
    with pytest.raises(EngineError, match="precision must be one of fp32, bf16, int8, got 'fp8'"):
        PackedModel(layers, precision="fp8")
    with pytest.raises(ShapeError, match=r"weight_ih of layer 1 must be \(80, 20\) float32 on the CPU, got \(80, 8\)"):
        PackedModel([layers[0], layers[1]._replace(weight_ih=torch.zeros(80, 8))])
    with pytest.raises(ShapeError, match=r"weight_hh of layer 0 must be .* got \(80, 20\) torch.float64"):
        PackedModel([layers[0]._replace(weight_hh=layers[0].weight_hh.double())])
    with pytest.raises(ShapeError, match=r"residual needs layers of one size, got \[20, 3\]"):
        PackedModel(some_layers("gru", 8, [20, 3]), residual=True)
    wide = LayerWeights("rnn_tanh", torch.zeros(1, 66_001), torch.zeros(1, 1))
    with pytest.raises(EngineError, match="int8 is for layers of up to 66000 inputs, got 66001; take bf16"):
        PackedModel([wide], precision="int8")


def test_one_stepper_is_one_threads_at_a_time(threads: Callable[[int], None]) -> None:
    threads(1)
    layers = some_layers("lstm", 300, [400])
    model = PackedModel(layers, some_ends(30, layers))
    shared, tokens = Stepper(model), torch.zeros(20_000, 1, dtype=torch.int64)
    began, told = threading.Event(), []

    def read() -> None:
        began.set()
        shared.read(tokens)

    thread = threading.Thread(target=read)
    thread.start()
    began.wait()
    while thread.is_alive() and not told:
        try:
            shared.step(tokens[0])
        except RuntimeError as error:
            told.append(str(error))
    thread.join()
    assert told == ["this stepper is at work in another thread"]


def test_steppers_of_one_model_do_not_disturb_each_other(threads: Callable[[int], None]) -> None:
    threads(2)
    layers = some_layers("lstm", 64, [300])
    model = PackedModel(layers, some_ends(30, layers))
    prompts = torch.randint(30, (4, 300, 1))
    expected = []
    for prompt in prompts:
        stepper = Stepper(model)
        stepper.read(prompt)
        expected.append(stepper.logits())
    found: dict[int, Tensor] = {}

    def read(index: int) -> None:
        stepper = Stepper(model)
        for row in prompts[index]:
            stepper.step(row)
        found[index] = stepper.logits()

    workers = [threading.Thread(target=read, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(found[index], expected[index]) for index in range(4))


def test_a_model_without_readout_has_no_logits() -> None:
    layers = some_layers("lstm", 3, [4])
    ends = some_ends(7, layers)
    stepper = Stepper(PackedModel(layers, Ends(ends.embedding)), 1)
    stepper.read(torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(ShapeError, match="no readout"):
        stepper.logits()
    with pytest.raises(ShapeError, match="no readout"):
        stepper.step(torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ShapeError, match="both or neither"):
        PackedModel(layers, Ends(ends.embedding, ends.readout))
