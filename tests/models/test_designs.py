"""The laws of the designs, whatever the cell, the outputs, the layers and the lengths."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import throughtime as tt
from throughtime.cells import CELL_KINDS
from throughtime.errors import ConfigError, DivergedError, ShapeError, UsageError
from throughtime.layers.outputs import KINDS

TIGHT: dict[str, float] = {"rtol": 1e-9, "atol": 1e-10}
STEPS, BATCH, INPUTS, OUTPUTS = 5, 3, 2, 3


class Slow(NamedTuple):
    """h(t), which moves slowly, and where it began."""

    h: Tensor
    first: Tensor


class SlowCell(tt.Cell):
    """A cell of one's own, whose sequences do not begin at zero."""

    State = Slow

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__(inputs, units)
        self.U = nn.Linear(inputs, units)
        self.W = nn.Linear(units, units, bias=False)

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> Slow:
        ones = torch.ones(batch_size, self.hidden_size, dtype=dtype, device=device)
        return Slow(0.5 * ones, 0.1 * ones)

    def project_inputs(self, inputs: Tensor) -> Tensor:
        return self.U(inputs)

    def step(self, projected: Tensor, state: Slow) -> Slow:
        h = 0.7 * state.h + 0.3 * torch.tanh(projected + self.W(state.h) + state.first)
        return Slow(h, state.first)


CELLS: list[Any] = [*CELL_KINDS, SlowCell]
FED_BACK = ["OutputRecurrent", "ConditionalRecurrent", "ContextToSequence"]
DESIGNS = ["HiddenRecurrent", "SequenceSummary", *FED_BACK]
STOPS = ["given", "end_symbol", "bernoulli_halt", "predicted_length"]


def make(name: str, *, stop: str = "given", seed: int = 0, **keys: Any) -> Any:
    torch.manual_seed(seed)
    keys = {"output_size": OUTPUTS, "hidden_size": 4, "mixture_components": 2, **keys}
    if name == "ContextToSequence":
        keys = {"context_size": INPUTS, "stop": stop, "max_length": STEPS, **keys}
    else:
        keys = {"input_size": INPUTS, **keys}
    return getattr(tt.models, name)(**keys).double().eval()


def x_of(name: str, seed: int = 1) -> Tensor:
    """Inputs (T, B, I), or a context (B, C)."""
    shape = (BATCH, INPUTS) if name == "ContextToSequence" else (STEPS, BATCH, INPUTS)
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def y_of(name: str, output: str, seed: int = 2) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    shape: tuple[int, ...] = (BATCH,) if name == "SequenceSummary" else (STEPS, BATCH)
    if output == "categorical":
        return torch.randint(OUTPUTS, shape, generator=random)
    y = torch.randn(*shape, OUTPUTS, dtype=torch.float64, generator=random)
    return (y > 0).double() if output == "bernoulli" else y


def valid_stop(stop: str, output: str) -> str:
    return "bernoulli_halt" if stop == "end_symbol" and output != "categorical" else stop


cells = st.sampled_from(CELLS)
outputs = st.sampled_from(KINDS)
lengths_of_rows = st.lists(st.integers(0, STEPS), min_size=BATCH, max_size=BATCH)


@given(
    name=st.sampled_from(DESIGNS),
    cell=cells,
    output=outputs,
    layers=st.integers(1, 2),
    stop=st.sampled_from(STOPS),
    lengths=lengths_of_rows,
)
@settings(max_examples=15)
def test_padding_changes_nothing_and_a_batch_is_its_members(
    name: str, cell: Any, output: str, layers: int, stop: str, lengths: list[int]
) -> None:
    model = make(name, cell=cell, output=output, num_layers=layers, stop=valid_stop(stop, output))
    x, y = x_of(name), y_of(name, output)
    padded_x, padded_y = x.clone(), y.clone()
    for row, length in enumerate(lengths):
        if x.dim() == 3:
            padded_x[length:, row] = math.nan
        if name != "SequenceSummary":
            padded_y[length:, row] = 77 if output == "categorical" else math.nan
    found = model.log_prob(padded_y, padded_x, lengths=lengths)
    found.total.sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert gradient.isfinite().all()
    model.zero_grad()
    for row, length in enumerate(lengths):
        own_y = y[row : row + 1] if name == "SequenceSummary" else y[:length, row : row + 1]
        own_x = x[row : row + 1] if x.dim() == 2 else x[:length, row : row + 1]
        alone = model.log_prob(own_y, own_x)
        torch.testing.assert_close(found.total[row], alone.total[0], **TIGHT)
        torch.testing.assert_close(found.steps[: len(alone.steps), row], alone.steps[:, 0], **TIGHT)
        assert not found.steps[len(alone.steps) :, row].any()
        alone.total.sum().backward()
    members = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(gradient, members, **TIGHT)


@pytest.mark.parametrize("name", ["HiddenRecurrent", "SequenceSummary", "OutputRecurrent", "ConditionalRecurrent"])
def test_inputs_may_be_categories(name: str) -> None:
    model = make(name)
    x = torch.tensor([[0, 1, 1], [1, 0, 1], [0, 0, 1], [1, 1, 1], [0, 1, 0]])
    y = y_of(name, "categorical")
    numbers = nn.functional.one_hot(x, 2).double()
    assert torch.equal(model.log_prob(y, x).total, model.log_prob(y, numbers).total)
    beyond = x.clone()
    beyond[3:, 1] = -5
    found = model.log_prob(y, beyond, lengths=[5, 3, 4]).total
    assert torch.equal(found, model.log_prob(y, numbers, lengths=[5, 3, 4]).total)


@given(
    name=st.sampled_from(FED_BACK),
    cell=cells,
    output=outputs,
    layers=st.integers(1, 2),
    stop=st.sampled_from(STOPS),
    lengths=lengths_of_rows,
)
@settings(max_examples=12)
def test_teaching_at_once_is_teaching_step_by_step(
    name: str, cell: Any, output: str, layers: int, stop: str, lengths: list[int]
) -> None:
    model = make(name, cell=cell, output=output, num_layers=layers, stop=valid_stop(stop, output), residual=layers > 1)
    x, y = x_of(name), y_of(name, output)
    steps = len(model.prepare(x, y, lengths).targets)
    results = []
    for own in (None, torch.zeros(steps, BATCH, dtype=torch.bool)):
        model.zero_grad()
        loss = model(x, targets=y, lengths=lengths, own=own)
        loss.sum().backward()
        results.append([loss, *(p.grad for p in model.parameters() if p.grad is not None)])
    for at_once, by_step in zip(*results, strict=True):
        torch.testing.assert_close(at_once, by_step, **TIGHT)


@given(name=st.sampled_from(FED_BACK), cell=cells, output=outputs, feedback=st.sampled_from(["mean", "sample"]))
@settings(max_examples=12)
def test_running_freely_is_feeding_back_by_hand(name: str, cell: Any, output: str, feedback: Any) -> None:
    model = (
        make(name, cell=cell, output=output, context_as="both")
        if name == FED_BACK[2]
        else make(name, cell=cell, output=output)
    )
    x, y = x_of(name), y_of(name, output)
    noise = model.distribution.noise(STEPS, BATCH, like=x, generator=torch.Generator().manual_seed(3))
    sequences = model.prepare(x, y)
    own = torch.ones(STEPS, BATCH, dtype=torch.bool)
    found = model.run(sequences, own=own, feedback=feedback, noise=noise if feedback == "sample" else None)
    states = sequences.states or model.first_states(x)
    fed = x.new_zeros(BATCH, model.distribution.feedback_size)
    for t in range(STEPS):
        h, states = model.advance(torch.cat([sequences.external[t], fed], -1), states)
        o = model.readout(h)
        torch.testing.assert_close(found.outputs[t], o, **TIGHT)
        torch.testing.assert_close(found.hidden[t], h, **TIGHT)
        drawn = model.distribution.sample(o, noise[t])
        fed = model.distribution.features(drawn).double() if feedback == "sample" else model.distribution.mean(o)
    free = model.run_freely(
        sequences.external, sequences.states, feedback=feedback, noise=noise if feedback == "sample" else None
    )
    torch.testing.assert_close(free.outputs, found.outputs, **TIGHT)


def test_own_steps_are_taken_where_they_are_asked_for() -> None:
    """Up to the first step of its own a sequence is as taught; rows are independent."""
    model, x, y = (
        make("ConditionalRecurrent"),
        x_of("ConditionalRecurrent"),
        y_of("ConditionalRecurrent", "categorical"),
    )
    own = torch.zeros(STEPS, BATCH, dtype=torch.bool)
    own[3, 1] = True
    taught, mixed = model(x, targets=y), model(x, targets=y, own=own)
    rows = [0, 2]
    torch.testing.assert_close(mixed[:, rows], taught[:, rows], **TIGHT)
    torch.testing.assert_close(mixed[:3, 1], taught[:3, 1], **TIGHT)
    assert ((mixed - taught)[3:, 1].abs() > 1e-6).all()


@pytest.mark.parametrize(
    ("name", "taught", "keys"),
    [
        ("HiddenRecurrent", True, {"cell": "gru", "bidirectional": True, "output": "learned_gaussian"}),
        ("SequenceSummary", True, {"cell": "lstm", "pooling": "attention"}),
        ("OutputRecurrent", True, {"cell": "lstm", "num_layers": 2}),
        ("OutputRecurrent", False, {"cell": "rnn"}),
        ("ConditionalRecurrent", True, {"cell": "deep_transition", "output": "bernoulli"}),
        ("ConditionalRecurrent", False, {"cell": SlowCell, "output": "mixture_density"}),
        ("ContextToSequence", True, {"cell": "rnn", "stop": "predicted_length", "context_as": "both"}),
        ("ContextToSequence", False, {"cell": "gru", "stop": "bernoulli_halt", "output": "gaussian"}),
    ],
)
def test_gradients_are_those_of_differences(name: str, taught: bool, keys: dict[str, Any]) -> None:
    model = make(name, hidden_size=3, **keys)
    x, y = x_of(name), y_of(name, keys.get("output", "categorical"))
    names, parameters = zip(*model.named_parameters(), strict=True)
    more: dict[str, Any] = {}
    if not taught:
        more["own"] = torch.ones(len(model.prepare(x, y, [5, 2, 4]).targets), BATCH, dtype=torch.bool)

    def loss(x: Tensor, *values: Tensor) -> Any:
        named = dict(zip(names, values, strict=True))
        return torch.func.functional_call(model, named, (x,), {"targets": y, "lengths": [5, 2, 4], **more})

    leaves = [x, *(p.detach().clone() for p in parameters)]
    assert torch.autograd.gradcheck(loss, [leaf.requires_grad_() for leaf in leaves], fast_mode=True)


# -- pooling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["last", "mean", "max", "attention"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "leaky"])
def test_a_summary_takes_each_sequence_up_to_its_own_end(pooling: str, bidirectional: bool, cell: str) -> None:
    model = make("SequenceSummary", pooling=pooling, bidirectional=bidirectional, cell=cell)
    x = x_of("SequenceSummary")
    x[2:, 1] = math.nan
    found = model(x, lengths=[5, 2, 0])
    for row, length in enumerate([5, 2]):
        torch.testing.assert_close(found[row], model(x[:length, row : row + 1])[0], **TIGHT)
    torch.testing.assert_close(found[2], model.readout.bias_ho.detach(), **TIGHT)  # nothing read: h is zero
    h, _ = model.recurrent(x[:, :1])
    by_hand = {
        "last": torch.cat([h[-1, 0, :4], h[0, 0, 4:]]),
        "mean": h.mean(0)[0],
        "max": h.amax(0)[0],
        "attention": (model.attention(h).softmax(0) * h).sum(0)[0] if pooling == "attention" else None,
    }[pooling]
    torch.testing.assert_close(found[0], model.readout(by_hand), **TIGHT)
    model(torch.where(x.isnan(), 0, x), lengths=[5, 2, 0]).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# -- parts -----------------------------------------------------------------------------------------------------------


def test_without_hidden_recurrence_there_is_no_w() -> None:
    model = make("OutputRecurrent", cell="gru")
    assert not [name for name, _ in model.named_parameters() if "weight_hh" in name]
    # With a target fed back for y(t-1), no step changes another.
    x, y = x_of("OutputRecurrent"), y_of("OutputRecurrent", "categorical")
    changed = x.clone()
    changed[1] += 1
    difference = (model(x, targets=y) - model(changed, targets=y)).abs().sum(1)
    assert (difference > 1e-6).tolist() == [False, True, False, False, False]


def test_r_is_shared_by_all_steps_and_enters_as_asked() -> None:
    x, y = x_of("ContextToSequence"), y_of("ContextToSequence", "categorical")
    for context_as, size in (("input", INPUTS), ("both", INPUTS), ("state", None)):
        model = make("ContextToSequence", context_as=context_as, cell="leaky")
        assert (None if model.weight_rh is None else model.weight_rh.shape[1]) == size
        with torch.no_grad():
            before = model(x, targets=y)
            after = model(x + 1, targets=y)
        assert ((before - after).abs() > 1e-9).all()  # at every step
    alone = make("ContextToSequence", context_size=0)
    assert alone.weight_rh is None
    assert alone.log_prob(y).total.shape == (BATCH,)


def test_dropout_and_initialisations_are_taken() -> None:
    torch.manual_seed(0)
    model = tt.models.HiddenRecurrent(
        input_size=2, output_size=3, hidden_size=5, cell="rnn", nonlinearity="relu", initialisation="identity"
    )
    assert torch.equal(model.recurrent.weight_hh_l0, torch.eye(5))
    noisy = make("ConditionalRecurrent", dropout=0.5, num_layers=2).train()
    x, y = x_of("ConditionalRecurrent"), y_of("ConditionalRecurrent", "categorical")
    for own in (None, torch.zeros(STEPS, BATCH, dtype=torch.bool)):
        first, second = (noisy(x, targets=y, own=own) for _ in range(2))
        assert not torch.equal(first, second)
    sampled = noisy.sample(x, generator=torch.Generator().manual_seed(1))
    assert torch.equal(sampled, noisy.sample(x, generator=torch.Generator().manual_seed(1)))
    assert noisy.training


# -- saved and loaded ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DESIGNS)
@pytest.mark.parametrize("cell", ["lstm", "deep_transition", SlowCell])
def test_a_model_comes_back_as_it_was(name: str, cell: Any, tmp_path: Path) -> None:
    keys = {"stop": "predicted_length", "context_as": "both"} if name == "ContextToSequence" else {}
    model = make(name, cell=cell, **keys).float()
    model.save(tmp_path)
    own = {} if isinstance(cell, str) else {"cell": cell}
    loaded = getattr(tt.models, name).load(tmp_path, **own)
    x, y = x_of(name).float(), y_of(name, "categorical")
    assert torch.equal(loaded.log_prob(y, x).total, model.log_prob(y, x).total)
    assert loaded.config == model.config


def test_a_cell_of_ones_own_has_to_be_given_again(tmp_path: Path) -> None:
    make("HiddenRecurrent", cell=SlowCell).float().save(tmp_path)
    with pytest.raises(
        UsageError,
        match="^HiddenRecurrent: cell must be one of rnn, lstm, gru, .*, or a class handed over, got the name "
        r"'SlowCell'; of a cell of your own give the class, to load\(\) too$",
    ):
        tt.models.HiddenRecurrent.load(tmp_path)
    with pytest.raises(UsageError, match=r"OutputRecurrent: cell must be one of .*, got the name 'ltsm'"):
        make("OutputRecurrent", cell="ltsm")


# -- misuse ----------------------------------------------------------------------------------------------------------


def test_targets_have_to_fit() -> None:
    model, x = make("HiddenRecurrent"), x_of("HiddenRecurrent")
    with pytest.raises(
        ShapeError,
        match=r"^HiddenRecurrent: targets must have as many steps as the inputs, 5, got 7; a design whose output is as "
        "long as it likes is ContextToSequence$",
    ):
        model(x, targets=torch.zeros(7, BATCH, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"HiddenRecurrent: targets must be int64 categories \(5, 3\), got .*float32"):
        model(x, targets=torch.zeros(STEPS, BATCH))
    with pytest.raises(ShapeError, match=r"targets must be floating-point \(5, 3, 3\), got torch.int64 \(5, 3\)"):
        make("ConditionalRecurrent", output="gaussian")(x, targets=torch.zeros(STEPS, BATCH, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"SequenceSummary: targets must be int64 categories \(3,\), got .* \(5, 3\)"):
        make("SequenceSummary")(x, targets=torch.zeros(STEPS, BATCH, dtype=torch.int64))
    for name in ("HiddenRecurrent", "ConditionalRecurrent", "SequenceSummary", "ContextToSequence"):
        for wrong, got in ((OUTPUTS, r"\d\.\.3"), (-1, r"-1\.\.2")):
            y = y_of(name, "categorical")
            y[0] = wrong
            with pytest.raises(
                ShapeError, match=rf"^{name}: targets must be categories in 0\.\.2, got {got}; an end symb"
            ):
                make(name, **({"stop": "end_symbol"} if name == "ContextToSequence" else {}))(x_of(name), targets=y)


@pytest.mark.parametrize("name", ["HiddenRecurrent", "SequenceSummary", "OutputRecurrent", "ConditionalRecurrent"])
def test_inputs_and_lengths_have_to_fit(name: str) -> None:
    model, y = make(name), y_of(name, "categorical")
    for wrong in (torch.zeros(STEPS, BATCH, 9), torch.zeros(STEPS, BATCH), torch.zeros(STEPS, BATCH, 2).long()):
        with pytest.raises(
            ShapeError,
            match=rf"^{name}: inputs must be \(T, B, 2\), or int64 categories \(T, B\), got .*; time comes first",
        ):
            model(wrong, targets=y)
    with pytest.raises(ShapeError, match=rf"^{name}: inputs must be categories in 0\.\.1, got 0\.\.4"):
        model(torch.tensor([[0, 1, 4]] * STEPS), targets=y)
    with pytest.raises(ShapeError, match=rf"{name}: lengths must lie in 0..5, .* got 2..6"):
        model(x_of(name), targets=y, lengths=[2, 6, 3])
    with pytest.raises(ShapeError, match=rf"{name}: lengths must be 3 whole numbers"):
        model(x_of(name), targets=y, lengths=[2, 3])
    with pytest.raises(ShapeError, match=rf"{name}: inputs must be \(T, B, 2\), .* got None"):
        model(None, targets=y)


def test_contexts_have_to_fit() -> None:
    model, y = make("ContextToSequence"), y_of("ContextToSequence", "categorical")
    for wrong in (torch.zeros(BATCH, 5), torch.zeros(2, INPUTS), None):
        got = "None" if wrong is None else rf"\({len(wrong)}, {wrong.shape[1]}\)"
        with pytest.raises(
            ShapeError, match=rf"^ContextToSequence: context must be \(3, 2\), got {got}; one vector for each sequence$"
        ):
            model(wrong, targets=y)
    with pytest.raises(ShapeError, match=r"context must be None, as context_size is 0, got \(3, 2\)"):
        make("ContextToSequence", context_size=0)(x_of("ContextToSequence"), targets=y)
    with pytest.raises(ShapeError, match="lengths must be at most max_length=4, got 5; make max_length greater"):
        make("ContextToSequence", stop="predicted_length", max_length=4)(x_of("ContextToSequence"), targets=y)
    with pytest.raises(
        UsageError, match="ContextToSequence: sample needs a context, or a batch_size where there is non"
    ):
        make("ContextToSequence", context_size=0).sample(max_length=3)


@pytest.mark.parametrize("name", FED_BACK)
def test_samples_need_noise(name: str) -> None:
    own = torch.ones(STEPS, BATCH, dtype=torch.bool)
    with pytest.raises(
        UsageError, match=rf"^{name}: feedback='sample' needs noise; distribution.noise\(T, B\) draws it$"
    ):
        make(name)(x_of(name), targets=y_of(name, "categorical"), own=own, feedback="sample")


def test_configurations_that_cannot_be() -> None:
    with pytest.raises(
        ConfigError, match='stop "end_symbol" needs categorical outputs, got gaussian; try "bernoulli_ha'
    ):
        make("ContextToSequence", stop="end_symbol", output="gaussian")
    with pytest.raises(ConfigError, match="context_as must be input where there is no context, got state"):
        make("ContextToSequence", context_size=0, context_as="state")
    with pytest.raises(ConfigError, match="nonlinearity is for cell \"rnn\", got cell 'gru'"):
        make("HiddenRecurrent", cell="gru", nonlinearity="relu")
    with pytest.raises(ConfigError, match="initialisation 'chrono' is for cells lstm, gru, got cell 'rnn'"):
        make("HiddenRecurrent", cell="rnn", initialisation="chrono")
    with pytest.raises(ConfigError, match="hidden_sise"):
        make("HiddenRecurrent", hidden_sise=4)


def test_design_b_reads_numbers_of_its_own_type() -> None:
    model = make("OutputRecurrent", cell="rnn").float()
    x = torch.zeros(3, 2, model.config.input_size, dtype=torch.float64)
    with pytest.raises(ShapeError, match=r"OutputRecurrent: inputs must be torch.float32 as the weights are"):
        model.log_prob(torch.zeros(3, 2, dtype=torch.int64), x)


@pytest.mark.parametrize("name", ["HiddenRecurrent", "SequenceSummary", "OutputRecurrent", "ContextToSequence"])
def test_weights_that_have_diverged_draw_nothing(name: str) -> None:
    model = make(name)
    model.readout.weight_ho.data.fill_(math.nan)
    arguments = {"max_length": 2} if name == "ContextToSequence" else {}
    with pytest.raises(DivergedError, match="sample: the network's outputs are no numbers; its weights have diverged"):
        model.sample(x_of(name), **arguments)
