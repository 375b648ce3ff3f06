"""Three ways to end a sequence, one interface: what is decoded has the probability that the model gives it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor

import throughtime as tt
from throughtime.decoding import BernoulliHalt, EndSymbol, PredictedLength, given, greedy, length_error, sample, stream
from throughtime.errors import ConfigError, PromptError, ShapeError, UsageError

RULES = {"end_symbol": EndSymbol(), "bernoulli_halt": BernoulliHalt(), "predicted_length": PredictedLength()}
TIGHT: dict[str, float] = {"rtol": 1e-10, "atol": 1e-10}


def context_model(stop: str, **keys: Any) -> tt.models.ContextToSequence:
    torch.manual_seed(3)
    keys = {"context_size": 2, "output_size": 2, "hidden_size": 4, "max_length": 3, **keys}
    return tt.models.ContextToSequence(stop=stop, **keys).double().eval()


def contexts(count: int) -> Tensor:
    return torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def of_inputs(kind: Any, **keys: Any) -> Any:
    torch.manual_seed(4)
    return kind(input_size=3, output_size=3, hidden_size=5, **keys).double().eval()


def inputs(steps: int, batch: int) -> Tensor:
    return torch.randn(steps, batch, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("stop", [*RULES, "given"])
@pytest.mark.parametrize("context_as", ["input", "state", "both"])
@pytest.mark.parametrize("cell", ["lstm", "skip"])
def test_what_is_drawn_has_the_probability_that_the_model_gives_it(stop: str, context_as: str, cell: str) -> None:
    model, x = context_model(stop, context_as=context_as, cell=cell, num_layers=2), contexts(8)
    about = given(model, context=x, lengths=[0, 1, 2, 3, 4, 5, 6, 7] if stop == "given" else None)
    drawn = sample(about, length=9, seed=2, stop=RULES.get(stop))
    right = model.log_prob(drawn.tokens.clamp(max=1), x, lengths=drawn.lengths)
    ended = drawn.lengths < 9
    assert int(ended.sum()) > 5
    torch.testing.assert_close(drawn.log_probs.sum(0)[ended], right.total[ended], **TIGHT)
    for row, length in enumerate(drawn.lengths.tolist()):
        assert (drawn.tokens[:length, row] < 2).all()
        assert (drawn.tokens[length:, row] == 2).all()


@pytest.mark.parametrize("kind", [tt.models.ConditionalRecurrent, tt.models.OutputRecurrent, tt.models.HiddenRecurrent])
def test_designs_with_inputs_write_one_symbol_for_each(kind: Any) -> None:
    model, x = of_inputs(kind, num_layers=2), inputs(6, 4)
    lengths = torch.tensor([6, 0, 3, 5])
    x[3:, 2] = math.nan
    drawn = sample(given(model, inputs=x, lengths=lengths), length=10, seed=3)
    assert torch.equal(drawn.lengths, lengths)
    assert drawn.tokens.shape == (7, 4)
    right = model.log_prob(drawn.tokens[:6].clamp(max=2), x, lengths=lengths)
    torch.testing.assert_close(drawn.log_probs[:6], right.steps, **TIGHT)
    assert not drawn.log_probs[6].any()
    assert torch.equal(sample(given(model, inputs=x, lengths=lengths), length=2, seed=3).tokens, drawn.tokens[:2])


def test_design_a_read_from_both_ends_can_be_decoded() -> None:
    model, x = of_inputs(tt.models.HiddenRecurrent, bidirectional=True), inputs(5, 3)
    decoded = greedy(given(model, inputs=x), length=5)
    assert torch.equal(decoded.tokens, model(x).argmax(-1))


def test_greedy_feeds_back_what_it_chose() -> None:
    model, x = of_inputs(tt.models.ConditionalRecurrent), inputs(5, 3)
    decoded = greedy(given(model, inputs=x), length=5).tokens
    made = torch.zeros(5, 3, dtype=torch.int64)
    for t in range(5):
        candidates = torch.stack([model.log_prob(_with(made, t, y), x).steps[t] for y in range(3)])  # (V, B)
        made[t] = candidates.argmax(0)
    assert torch.equal(decoded, made)


def _with(tokens: Tensor, t: int, y: int) -> Tensor:
    changed = tokens.clone()
    changed[t] = y
    return changed


@pytest.mark.parametrize("stop", RULES)
def test_a_batch_of_contexts_is_its_members(stop: str) -> None:
    model, x = context_model(stop, output_size=3), contexts(5)
    rule = RULES[stop]
    both = greedy(given(model, context=x), length=7, stop=rule)
    for row in range(5):
        alone = greedy(given(model, context=x[row]), length=7, stop=rule)
        length = len(alone.tokens)
        assert torch.equal(alone.tokens[:, 0], both.tokens[:length, row])
        torch.testing.assert_close(alone.log_probs[:, 0], both.log_probs[:length, row], **TIGHT)
        assert alone.lengths[0] == both.lengths[row]


@pytest.mark.parametrize("stop", RULES)
def test_one_context_for_many_rows(stop: str) -> None:
    model, x = context_model(stop), contexts(1)
    many = sample(given(model, context=x[0]), length=5, samples=6, seed=1, stop=RULES[stop])
    same = sample(given(model, context=x.expand(6, -1)), length=5, seed=1, stop=RULES[stop])
    assert torch.equal(many.tokens, same.tokens)
    # Without a rule, it is the model's own.
    assert torch.equal(sample(given(model, context=x[0]), length=5, samples=6, seed=1).tokens, many.tokens)


@pytest.mark.parametrize("stop", RULES)
def test_draws_come_as_often_as_they_are_likely(stop: str) -> None:
    model = context_model(stop, context_size=0)
    drawn = sample(given(model), length=4, samples=3000, seed=5, stop=RULES[stop])
    sequences = [y for length in range(4) for y in itertools.product(range(2), repeat=length)]
    likely = torch.stack([_log_prob(model, y) for y in sequences]).exp().tolist()
    rows = [tuple(drawn.tokens[: drawn.lengths[row], row].tolist()) for row in range(3000)]
    counts = [rows.count(y) for y in sequences]
    # All that is longer, together.
    counts.append(3000 - sum(counts))
    likely.append(1 - sum(likely))
    kept = [index for index, p in enumerate(likely) if p > 1e-9]
    assert sum(counts[index] for index in kept) == 3000
    total = sum(likely[index] for index in kept)
    expected = [3000 * likely[index] / total for index in kept]
    assert scipy.stats.chisquare([counts[index] for index in kept], expected).pvalue > 1e-4


def _log_prob(model: Any, y: tuple[int, ...]) -> Tensor:
    return model.log_prob(torch.tensor(y, dtype=torch.int64).reshape(len(y), 1)).total[0].detach()


def test_the_end_competes_with_the_symbols() -> None:
    model = context_model("bernoulli_halt", context_size=0, hidden_size=1, output_size=3)
    with torch.no_grad():
        model.readout.weight_ho.zero_()
        model.readout.bias_ho.copy_(torch.tensor([0.0, 0.0, 1.0, 0.0]))  # s(t) = 1/2, above (1 - s) p of any symbol
    assert greedy(given(model), length=4, stop=BernoulliHalt()).lengths.tolist() == [0]
    with torch.no_grad():
        model.readout.bias_ho[3] = -1.0
    decoded = greedy(given(model), length=4, stop=BernoulliHalt())
    assert decoded.tokens[:, 0].tolist() == [2, 2, 2, 2]
    p = torch.tensor(1.0).double()
    step = -torch.log1p(torch.exp(-p)) + torch.log(p.exp() / (2 + p.exp()))
    torch.testing.assert_close(decoded.log_probs[:, 0], step.expand(4))


def test_a_predicted_length_is_kept_and_not_told_as_a_token() -> None:
    model = context_model("predicted_length", context_size=0, max_length=5)
    with torch.no_grad():
        model.length_bias[3] = 4.0
    about = given(model)
    decoded = greedy(about, length=9, stop=PredictedLength())
    assert decoded.lengths.tolist() == [3]
    assert decoded.tokens.max() == 2
    assert [int(y) for y in torch.cat(list(stream(about, length=9, seed=1)))] == sample(about, length=9, seed=1).tokens[
        :, 0
    ].tolist()
    assert greedy(about, length=2).lengths.tolist() == [2]
    assert greedy(about, length=0).tokens.shape == (0, 1)


def test_a_prompt_goes_on_from_its_symbols() -> None:
    model = context_model("end_symbol", context_size=0, output_size=3)
    decoded = greedy(given(model), [3, 1, 2], length=1)
    steps = [model.log_prob(torch.tensor([[1], [2], [y]])).steps[2, 0].detach() for y in range(3)]
    end = model.log_prob(torch.tensor([[1], [2]])).steps[2, 0].detach()
    choices = torch.stack([*steps, end])
    assert decoded.tokens[0, 0] == choices.argmax()
    torch.testing.assert_close(decoded.log_probs[0, 0], choices.max(), **TIGHT)


def test_dropout_is_off_and_modes_are_kept() -> None:
    model = context_model("end_symbol", dropout=0.5, num_layers=2).train()
    about = given(model, context=contexts(3))
    assert torch.equal(greedy(about, length=5).log_probs, greedy(about, length=5).log_probs)
    assert model.training
    noisy = of_inputs(tt.models.HiddenRecurrent, dropout=0.5).train()
    decoded = [greedy(given(noisy, inputs=inputs(4, 2)), length=4).log_probs for _ in range(2)]
    assert torch.equal(*decoded)


# -- the error of lengths --------------------------------------------------------------------------------------------


def test_length_error_of_a_known_length() -> None:
    model = context_model("predicted_length", context_size=0, max_length=5)
    with torch.no_grad():
        model.length_bias[4] = 60.0
    assert length_error(model, [4, 2, 5], max_length=9) == (1.0, 1.0)
    assert length_error(model, [4, 4], max_length=9) == (0.0, 0.0)
    assert length_error(model, [4], max_length=3) == (1.0, 1.0)


@pytest.mark.parametrize("output", ["categorical", "gaussian"])
def test_length_error_of_a_halt_at_half(output: str) -> None:
    model = context_model("bernoulli_halt", output=output, output_size=1)
    with torch.no_grad():
        model.readout.weight_ho.zero_()
        model.readout.bias_ho[-1] = 0.1
    found = length_error(model, [0] * 40, contexts(40), max_length=60, samples=50)
    s = 1 / (1 + math.exp(-0.1))
    assert found.decoded == 0.0
    assert found.expected == pytest.approx((1 - s) / s, abs=0.1)  # the mean of a geometric distribution
    with torch.no_grad():
        model.readout.bias_ho[-1] = -1.0
    assert length_error(model, [3] * 2, contexts(2), max_length=7).decoded == 4.0


def test_length_error_of_end_symbols() -> None:
    model = context_model("end_symbol")
    decoded = greedy(given(model, context=contexts(6)), length=9)
    assert length_error(model, decoded.lengths, contexts(6), max_length=9).decoded == 0.0
    assert length_error(model, decoded.lengths + 2, contexts(6), max_length=9).decoded == 2.0


# -- misuse ----------------------------------------------------------------------------------------------------------


def test_a_rule_for_another_model_is_told() -> None:
    about = given(context_model("bernoulli_halt"), context=contexts(2))
    with pytest.raises(
        ConfigError,
        match=r'^EndSymbol: the model must be built with stop="end_symbol", got one with stop="bernoulli_halt"; '
        r"take BernoulliHalt\(\)$",
    ):
        greedy(about, length=2, stop=EndSymbol())
    fixed = given(context_model("given"), context=contexts(2))
    with pytest.raises(ConfigError, match=r'BernoulliHalt: .* got one with stop="given"; leave stop out'):
        greedy(fixed, length=2, stop=BernoulliHalt())
    ending = given(context_model("end_symbol"), context=contexts(2))
    with pytest.raises(ConfigError, match="EndSymbol: id must be 2, the end that the model was built with, got 1"):
        greedy(ending, length=2, stop=EndSymbol(1))
    assert greedy(ending, length=2, stop=EndSymbol(2)).tokens.shape[1] == 2
    language = tt.models.LanguageModel(vocabulary_size=4, hidden_size=3, embedding_size=2)
    with pytest.raises(
        ConfigError,
        match=r'^PredictedLength: the model must be ContextToSequence\(stop="predicted_length"\), given its context by '
        r"tt\.decoding\.given, got LanguageModel; its sequences end by EndSymbol$",
    ):
        greedy(language, length=2, stop=PredictedLength())


def test_what_a_design_is_given_has_to_fit() -> None:
    model = context_model("end_symbol")
    with pytest.raises(UsageError, match=r"ContextToSequence has no step of its own; .* tt\.decoding\.given\(model"):
        greedy(model, length=2)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"context of ContextToSequence must be \(2,\) or \(B, 2\), got \(4, 3\)"):
        given(model, context=torch.zeros(4, 3))
    with pytest.raises(ShapeError, match=r"must be \(2,\) or \(B, 2\), got None"):
        given(model)
    with pytest.raises(ShapeError, match=r"must be None, as context_size is 0, got \(2,\)"):
        given(context_model("end_symbol", context_size=0), context=torch.zeros(2))
    with pytest.raises(UsageError, match="ContextToSequence takes a context, got inputs"):
        given(model, inputs=torch.zeros(3, 1, 2))
    with pytest.raises(ShapeError, match='lengths must be None, as ContextToSequence was built with stop="end_symbol"'):
        given(model, context=torch.zeros(2), lengths=[3])
    with pytest.raises(ShapeError, match=r"lengths must be 1 integers >= 0, one for each context, got \[3, 4\]"):
        given(context_model("given"), context=torch.zeros(2), lengths=[3, 4])
    design = of_inputs(tt.models.ConditionalRecurrent)
    with pytest.raises(UsageError, match="ConditionalRecurrent takes inputs, got a context; pass inputs= alone"):
        given(design, context=torch.zeros(2))
    with pytest.raises(
        ShapeError, match=r"inputs must be \(T, B, 3\), or int64 categories \(T, B\), got .*\(4, 2, 5\)"
    ):
        given(design, inputs=torch.zeros(4, 2, 5))
    with pytest.raises(UsageError, match="given is for designs that put out sequences, got SequenceSummary"):
        given(tt.models.SequenceSummary(input_size=3, output_size=2), inputs=torch.zeros(4, 2, 3))
    with pytest.raises(
        ConfigError, match="ContextToSequence must have categorical outputs, got gaussian; its own samp"
    ):
        given(context_model("given", output="gaussian"), context=torch.zeros(2))


def test_rows_and_prompts_have_to_fit() -> None:
    about = given(context_model("end_symbol"), context=contexts(3))
    with pytest.raises(ShapeError, match="one row for each of the 3 contexts or inputs, got 5 rows; for several"):
        sample(about, length=2, samples=5)
    with pytest.raises(
        PromptError,
        match=r"a prompt must begin with 2, which opens every sequence of ContextToSequence, got \[1, 1, 1\]",
    ):
        greedy(about, [1, 0], length=2)


def test_length_error_is_told_what_it_cannot_do() -> None:
    with pytest.raises(ConfigError, match="length_error: ContextToSequence must choose its lengths, got one to which"):
        length_error(context_model("given"), [1], contexts(1), max_length=4)
    with pytest.raises(ConfigError, match="length_error: HiddenRecurrent must choose its lengths"):
        length_error(of_inputs(tt.models.HiddenRecurrent), [1], max_length=4)
    with pytest.raises(ShapeError, match=r"lengths must be \(2,\), one for each context, got \(3,\)"):
        length_error(context_model("end_symbol"), [1, 2, 3], contexts(2), max_length=4)
