"""Faults of a language model's configuration, by their text."""

from __future__ import annotations

import re
from typing import Any

import pytest

from throughtime.configuration import validate
from throughtime.errors import ConfigError
from throughtime.models import LanguageModel, LanguageModelConfig


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            {"tied": True, "embedding_size": 10, "hidden_size": [8, 12], "num_layers": 2},
            "tied embeddings need embedding_size equal to the last layer's size 12, got 10",
        ),
        (
            {"hidden_size": [8, 8, 8], "num_layers": 2},
            "hidden_size must be one positive number, or one for each of the 2 layers, got [8, 8, 8]",
        ),
        ({"hidden_size": 0}, "hidden_size must be one positive number, or one for each of the 1 layers, got 0"),
        ({"hidden_size": []}, "hidden_size must be one positive number, or one for each of the 1 layers, got []"),
        (
            {"hidden_size": [8, 9], "num_layers": 2, "residual": True},
            "residual connections need layers of one size, got [8, 9]",
        ),
        ({"border_id": 5}, "border_id must be below vocabulary_size=5, got 5"),
        ({"vocabulary_size": 1}, "vocabulary_size: should be greater than or equal to 2, got 1"),
        ({"dropout": 1}, "dropout: should be less than 1, got 1"),
        ({"zoneout": -0.1}, "zoneout: should be greater than or equal to 0, got -0.1"),
        ({"cell": "lsmt"}, "cell: should be 'rnn', 'lstm' or 'gru', got 'lsmt'"),
        ({"embeding_size": 5}, "embeding_size: unknown key, did you mean embedding_size?"),
    ],
)
def test_a_fault_names_the_key_and_what_it_got(values: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"here: 1 fault: {line}") + "$|" + re.escape(f": {line}") + "$"):
        validate(LanguageModelConfig, {"vocabulary_size": 5} | values, where="here")


def test_a_hidden_size_that_is_no_number_is_one_fault() -> None:
    with pytest.raises(ConfigError, match=r"^here: 1 fault: hidden_size: .*integer.* or .*list, got 'big'$"):
        validate(LanguageModelConfig, {"vocabulary_size": 5, "hidden_size": "big"}, where="here")


def test_a_model_tells_all_faults_of_its_keys_at_once() -> None:
    line = (
        "LanguageModel: 3 faults: dropout: should be less than 1, got 2; "
        "vocabulary_size: missing, a value is required; "
        "hiden_size: unknown key, did you mean hidden_size?"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(line)}$"):
        LanguageModel(hiden_size=3, dropout=2)
