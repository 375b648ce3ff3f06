"""What is drawn, from which distribution, at what cost."""

from __future__ import annotations

import math
from typing import Any

import pytest
import scipy.stats
import torch
from torch import nn

import throughtime as tt
from throughtime.decoding import EndSymbol, Filters, greedy, sample, stream
from throughtime.decoding.randomness import RowUniforms
from throughtime.errors import ConfigError, DivergedError, PromptError, ShapeError

PROBABILITIES = [0.0, 0.4, 0.3, 0.2, 0.06, 0.04]


def language_model(**keys: Any) -> tt.models.LanguageModel:
    torch.manual_seed(0)
    return tt.models.LanguageModel(vocabulary_size=9, hidden_size=12, embedding_size=6, border_id=8, **keys)


def p_value(tokens: torch.Tensor, expected: list[float]) -> float:
    """Of the chi-squared test that `tokens` come from the distribution `expected`."""
    counts = torch.bincount(tokens.flatten(), minlength=len(expected)).tolist()
    possible = [index for index, probability in enumerate(expected) if probability]
    assert sum(counts) == sum(counts[index] for index in possible), "an impossible token was drawn"
    total = sum(counts)
    return float(scipy.stats.chisquare([counts[i] for i in possible], [expected[i] * total for i in possible]).pvalue)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, PROBABILITIES),
        ({"temperature": 0.5}, [p * p for p in PROBABILITIES]),
        ({"top_k": 3}, [0, 0.4, 0.3, 0.2, 0, 0]),
        ({"top_p": 0.65}, [0, 0.4, 0.3, 0, 0, 0]),
        ({"min_p": 0.14}, [0, 0.4, 0.3, 0.2, 0.06, 0]),
    ],
)
def test_tokens_are_drawn_from_the_filtered_distribution(fixed: Any, settings: Any, expected: list[float]) -> None:
    drawn = sample(fixed(PROBABILITIES), length=200, samples=50, seed=1, **settings)
    assert p_value(drawn.tokens, [p / sum(expected) for p in expected]) > 0.001


def test_rows_are_independent_of_each_other(fixed: Any) -> None:
    tokens = sample(fixed([0.5, 0.5]), length=4000, samples=2, seed=3).tokens
    pairs = tokens[:, 0] * 2 + tokens[:, 1]
    following = tokens[:-1, 0] * 2 + tokens[1:, 0]
    assert p_value(pairs, [0.25] * 4) > 0.001
    assert p_value(following, [0.25] * 4) > 0.001


def test_a_row_does_not_depend_on_how_many_there_are(fixed: Any) -> None:
    many = sample(fixed(PROBABILITIES), length=150, samples=5, seed=7).tokens
    for rows in (1, 2, 4):
        assert torch.equal(sample(fixed(PROBABILITIES), length=150, samples=rows, seed=7).tokens, many[:, :rows])


def test_the_same_seed_gives_the_same_tokens_and_another_gives_others(fixed: Any) -> None:
    def tokens(seed: Any) -> list[Any]:
        return sample(fixed(PROBABILITIES), length=50, seed=seed).tokens.tolist()

    assert tokens(5) == tokens(5) != tokens(6)
    assert tokens(torch.Generator().manual_seed(5)) == tokens(torch.Generator().manual_seed(5))
    assert tokens(torch.Generator().manual_seed(5)) != tokens(torch.Generator().manual_seed(6))
    assert tokens(None) != tokens(None)


def test_draws_touch_no_global_random_state(fixed: Any) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    sample(fixed(PROBABILITIES), length=5, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_uniforms_are_uniform() -> None:
    uniforms = RowUniforms(20, 4)
    drawn = torch.stack([uniforms.draw() for _ in range(500)]).flatten()
    assert scipy.stats.kstest(drawn.numpy(), "uniform").pvalue > 0.001


@pytest.mark.parametrize(("height", "expected"), [(0.0, 1), (0.4, 2), (1 - 2**-53, 3)])
def test_a_token_without_probability_is_never_drawn(
    fixed: Any, monkeypatch: pytest.MonkeyPatch, height: float, expected: int
) -> None:
    monkeypatch.setattr(RowUniforms, "draw", lambda self: torch.tensor([height], dtype=torch.float64))
    assert sample(fixed([0, 0.4, 0.3, 0.3, 0]), length=1, seed=0).tokens.tolist() == [[expected]]


@pytest.mark.parametrize("length", [1, 10, 300])
def test_the_prompt_is_read_once_and_each_token_costs_one_step(counting: Any, length: int) -> None:
    model = counting(1000)
    decoded = greedy(model, list(range(40)), length=length)
    assert model.reads == [40]
    assert len(model.fed) == length - 1
    assert decoded.tokens[:, 0].tolist() == list(range(40, 40 + length))


def test_a_long_prompt_is_read_in_parts_of_bounded_size(counting: Any) -> None:
    model = counting(7)
    greedy(model, [index % 7 for index in range(2500)], length=1)
    assert model.reads == [1024, 1024, 452]
    assert model.fed == []


def test_a_model_without_read_is_fed_its_prompt_step_by_step(fixed: Any) -> None:
    model = fixed(PROBABILITIES)
    sample(model, [3, 1, 2], length=2, samples=2, seed=0)
    assert model.fed[:3] == [[3, 3], [1, 1], [2, 2]]
    assert len(model.fed) == 4


def test_greedy_takes_the_likeliest_of_each_step() -> None:
    model = language_model().eval()
    decoded = greedy(model, [1, 2], length=10)
    tokens = torch.tensor([1, 2])[:, None]
    for _ in range(10):
        logits, _ = model(tokens)
        tokens = torch.cat([tokens, logits[-1].argmax(-1)[None]])
    assert torch.equal(decoded.tokens, tokens[2:])


def test_log_probs_are_those_of_the_model_itself() -> None:
    model = language_model().eval()
    decoded = sample(model, length=12, samples=3, seed=2, temperature=0.3, top_k=4, repetition_penalty=1.5)
    torch.testing.assert_close(decoded.log_probs.float(), model.log_prob(decoded.tokens).steps)


def test_each_row_of_a_batch_of_prompts_goes_on_from_its_own() -> None:
    model = language_model().eval()
    prompts = torch.tensor([[1, 4], [2, 5], [3, 6]])
    both = greedy(model, prompts, length=6).tokens
    alone = [greedy(model, prompts[:, row], length=6).tokens for row in range(2)]
    assert torch.equal(both, torch.cat(alone, dim=1))


def test_dropout_is_off_and_the_mode_of_every_module_is_kept() -> None:
    model = language_model(dropout=0.5, num_layers=2).train()
    model.readout.eval()
    modes = [part.training for part in model.modules()]
    first, second = (greedy(model, length=20).tokens for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, greedy(model.eval(), length=20).tokens)
    model.train()
    model.readout.eval()
    steps = stream(model, length=5)
    next(steps)
    assert [part.training for part in model.modules()] == modes
    assert model.training


def test_what_was_drawn_can_be_trained_on() -> None:
    model = language_model().train()
    tokens = sample(model, length=4, samples=2, seed=0).tokens
    streamed = torch.stack(list(stream(model, length=4, samples=2, seed=0)))
    assert torch.equal(tokens, streamed)
    for part in (tokens, streamed):
        model.log_prob(part).total.sum().backward()
    assert next(model.parameters()).grad is not None


def test_a_row_ends_at_its_end_symbol_and_the_others_go_on(fixed: Any) -> None:
    decoded = sample(fixed([0.2, 0.4, 0.4]), length=60, samples=8, seed=0, stop=EndSymbol())
    assert len(set(decoded.lengths.tolist())) > 3
    for row in range(8):
        end = int(decoded.lengths[row])
        assert (decoded.tokens[:end, row] != 0).all()
        assert (decoded.tokens[end:, row] == 0).all()
        assert (decoded.log_probs[: end + 1, row] < 0).all()
        assert (decoded.log_probs[end + 1 :, row] == 0).all()
    assert len(decoded.tokens) == min(60, int(decoded.lengths.max()) + 1)


def test_no_step_is_made_once_every_row_has_ended(counting: Any) -> None:
    model = counting(10)
    decoded = greedy(model, [6], length=100, stop=EndSymbol())
    assert decoded.tokens[:, 0].tolist() == [7, 8, 9, 0]
    assert decoded.lengths.tolist() == [3]
    assert len(model.fed) == 3


def test_a_penalty_counts_prompt_and_output_but_never_the_end(counting: Any) -> None:
    uniform = type("Uniform", (counting,), {"_after": lambda self, tokens: torch.ones(len(tokens), 5)})(5)
    decoded = sample(uniform, [0, 1], length=3, temperature=0, repetition_penalty=2.0, stop=EndSymbol(4))
    assert decoded.tokens[:, 0].tolist() == [2, 3, 4]
    decoded = sample(uniform, [4, 0, 1], length=3, temperature=0, repetition_penalty=2.0, stop=EndSymbol(4))
    assert decoded.tokens[:, 0].tolist() == [2, 3, 4]


def test_rows_are_penalised_for_their_own_tokens_only() -> None:
    model = language_model().eval()
    prompts = torch.tensor([[1, 4], [2, 5]])
    both = sample(model, prompts, length=8, temperature=0, repetition_penalty=5.0).tokens
    for row in range(2):
        alone = sample(model, prompts[:, row], length=8, temperature=0, repetition_penalty=5.0).tokens
        assert torch.equal(both[:, row : row + 1], alone)


def test_without_a_prompt_the_border_opens_the_sequence(counting: Any) -> None:
    model = counting(5)
    assert greedy(model, length=2).tokens[:, 0].tolist() == [1, 2]
    assert model.reads == [1]
    assert torch.equal(greedy(language_model(), length=3).tokens, greedy(language_model(), [8], length=3).tokens)


def test_a_length_of_zero_is_an_empty_sequence(fixed: Any) -> None:
    decoded = sample(fixed(PROBABILITIES), length=0, samples=3, seed=0)
    assert decoded.tokens.shape == decoded.log_probs.shape == (0, 3)
    assert decoded.lengths.tolist() == [0, 0, 0]


def test_stream_takes_the_filters_of_sample(fixed: Any) -> None:
    filters = Filters(temperature=0.8, top_k=3)
    streamed = torch.stack(list(stream(fixed(PROBABILITIES), length=9, seed=1, filters=filters)))
    assert torch.equal(streamed, sample(fixed(PROBABILITIES), length=9, seed=1, temperature=0.8, top_k=3).tokens)


def test_errors(fixed: Any) -> None:
    model = fixed(PROBABILITIES)
    with pytest.raises(
        PromptError, match=r"decoding: prompt ids must be in 0\.\.5, the vocabulary of .*, got 6; encode"
    ):
        sample(model, [1, 6], length=1)
    with pytest.raises(ShapeError, match=r"a prompt must be \(T,\), or \(T, B\) .*, got \(2, 2\) with samples=3"):
        sample(model, torch.ones(2, 2, dtype=torch.int64), length=1, samples=3)
    with pytest.raises(ShapeError, match=r"got \(1, 1, 1\)"):
        greedy(model, torch.ones(1, 1, 1, dtype=torch.int64), length=1)
    with pytest.raises(ConfigError, match="length must be >= 0, got -1"):
        sample(model, length=-1)
    for samples in (0, -3, 1.5):
        with pytest.raises(ConfigError, match=f"decoding: samples must be .*, got {samples}$"):
            sample(model, length=1, samples=samples)
    for prompt in ([1.9, 2.2], torch.tensor([True])):
        with pytest.raises(
            PromptError, match=r"a prompt must be whole numbers, the ids of tokens, got torch\.(float|bool)"
        ):
            sample(model, prompt, length=1)
    for seed in (-1, 1.5):
        with pytest.raises(ConfigError, match=f"decoding: a seed must be a whole number >= 0, .*, got {seed}$"):
            sample(model, length=1, seed=seed)
    with pytest.raises(ConfigError, match="top_k must be a number of tokens >= 0"):
        sample(model, length=1, top_k=2.5)
    with pytest.raises(ConfigError, match=r"decoding: stop must be EndSymbol\(\), .* or None, got 'x'"):
        sample(model, length=1, stop="x")
    with pytest.raises(ConfigError, match=r"EndSymbol: id must be in 0\.\.5, the vocabulary of FixedModel, got 9"):
        sample(model, length=1, stop=EndSymbol(9))
    model.border_id = None
    with pytest.raises(PromptError, match="FixedModel has no border_id to begin with; give it a prompt"):
        sample(model, length=1)
    with pytest.raises(ConfigError, match=r"FixedModel has no border_id; give .*: EndSymbol\(id\)"):
        sample(model, [1], length=1, stop=EndSymbol())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_told(fixed: Any, temperature: float) -> None:
    model = fixed(PROBABILITIES)
    model.logits = torch.full((6,), math.nan)
    with pytest.raises(DivergedError, match="FixedModel gave logits that are not finite; its weights have diverged"):
        sample(model, [1], length=1, temperature=temperature, seed=0)


def test_any_torch_module_with_a_step_can_be_decoded() -> None:
    class Own(nn.Module):
        vocabulary_size = 4

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.eye(4).roll(1, 1) * 9)

        def initial_state(self, batch_size: int) -> None:
            return None

        def step(self, tokens: torch.Tensor, state: None) -> tuple[torch.Tensor, None]:
            return self.table[tokens], None

    assert greedy(Own(), [0], length=5).tokens[:, 0].tolist() == [1, 2, 3, 0, 1]
