"""What an encoder-decoder refuses, and in which words."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import throughtime as tt
from throughtime.errors import ConfigError, ShapeError, UsageError
from throughtime.models import EncoderDecoderConfig

SIZES: dict[str, Any] = {"source_vocabulary_size": 6, "target_vocabulary_size": 5, "hidden_size": 4}
X, Y = torch.zeros(4, 2, dtype=torch.int64), torch.ones(3, 2, dtype=torch.int64)


def made(**keys: Any) -> Any:
    return tt.models.EncoderDecoder(**{**SIZES, "embedding_size": 3, **keys})


# -- configurations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"hidden_size": 5}, "a bidirectional encoder needs an even hidden_size, got 5"),
        ({"attention": "none", "coverage": True}, "coverage needs an attention, got none"),
        ({"attention": "none", "bridge": "zeros"}, 'bridge "zeros" needs an attention, got none'),
        ({"coverage_loss": 0.5}, "coverage_loss needs coverage=true, got coverage_loss 0.5"),
        ({"tied": "target"}, "tied embeddings need embedding_size equal to hidden_size=4, got 3"),
        (
            {"tied": "all", "embedding_size": 4},
            'tied "all" needs one vocabulary, got 6 tokens of the source and 5 of the target',
        ),
        (
            {"input_feeding": True, "engine": "native"},
            "engine 'native' runs all steps of a decoder at once, which input_feeding does not allow",
        ),
        ({"border_id": 5}, "border_id must be below target_vocabulary_size=5, got 5"),
        ({"atention": "dot"}, "atention: unknown key, did you mean attention?"),
    ],
)
def test_configurations_that_contradict_themselves_are_refused(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        made(**keys)


def test_all_values_out_of_range_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        made(hidden_size=0, attention="bilinear", dropout=1.0, stop="never", target_vocabulary_size=1)
    for name in ("hidden_size", "attention", "dropout", "stop", "target_vocabulary_size"):
        assert name in str(error.value)


def test_a_configuration_may_be_given_whole() -> None:
    config = EncoderDecoderConfig(**SIZES, attention="dot")
    assert tt.models.EncoderDecoder(config).config is config


def test_engines_that_there_are_none_of_are_refused() -> None:
    with pytest.raises(UsageError, match="engine"):
        made(engine="steam")


# -- sources -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (X.float(), "EncoderDecoder: a source must be int64 (S, B), got torch.float32 (4, 2); time comes first"),
        (X[:, 0], "EncoderDecoder: a source must be int64 (S, B), got torch.int64 (4,); time comes first"),
        (X + 6, "EncoderDecoder: a source must be tokens in 0..5, got 6..6; encode with the model's own tokenizer"),
        (X - 1, "EncoderDecoder: a source must be tokens in 0..5, got -1..-1; encode with"),
        ((X, torch.tensor([4, 5])), "EncoderDecoder: lengths must"),
        ((X, torch.tensor([4])), "EncoderDecoder: lengths must"),
    ],
)
def test_sources_that_do_not_fit_are_refused(source: Any, text: str) -> None:
    with pytest.raises(ShapeError, match=re.escape(text)):
        made()(source, targets=Y)
    with pytest.raises(ShapeError, match=re.escape(text)):
        made().sample(source, max_length=3)


# -- targets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "text"),
    [
        (Y.float(), "targets must be int64 (T, 2), one sequence for each source, got torch.float32 (3, 2); time comes"),
        (Y[:, :1], "targets must be int64 (T, 2), one sequence for each source, got torch.int64 (3, 1); time comes"),
        (Y[:, 0], "targets must be int64 (T, 2), one sequence for each source, got torch.int64 (3,); time comes first"),
        (Y * 5, "targets must be tokens in 0..4, got 5..5; encode with the model's own tokenizer"),
        (-Y, "targets must be tokens in 0..4, got -1..-1; encode with the model's own tokenizer"),
        (Y * 0, "targets must not hold the border 0; the end is the model's to add"),
    ],
)
def test_targets_that_do_not_fit_are_refused(targets: Tensor, text: str) -> None:
    model = made()
    with pytest.raises(ShapeError, match=re.escape(f"EncoderDecoder: {text}")):
        model(X, targets=targets)
    with pytest.raises(ShapeError, match=re.escape(f"EncoderDecoder: {text}")):
        model.log_prob(targets, X)


def test_lengths_that_do_not_fit_are_refused() -> None:
    for lengths in ([3], [3, 4], [-1, 2]):
        with pytest.raises(ShapeError, match="EncoderDecoder: lengths must"):
            made()(X, targets=Y, lengths=lengths)
    short = made(stop="predicted_length", max_length=2)
    with pytest.raises(ShapeError, match="lengths must be at most max_length=2, got 3; make max_length greater"):
        short(X, targets=Y)
    assert short(X, targets=Y, lengths=[2, 0]).shape == (4, 2)


# -- runs --------------------------------------------------------------------------------------------------------------


def test_samples_need_noise_and_lengths_of_at_least_zero() -> None:
    model = made()
    own = torch.ones(4, 2, dtype=torch.bool)
    with pytest.raises(UsageError, match=r"feedback='sample' needs noise; distribution.noise\(T, B\) draws it"):
        model(X, targets=Y, own=own, feedback="sample")
    with pytest.raises(UsageError, match="EncoderDecoder: max_length must be at least 0 steps, got -1"):
        model.sample(X, max_length=-1)
