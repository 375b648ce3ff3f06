"""What a search can be asked for, and what it says to what it cannot do."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from throughtime.decoding import EndSymbol
from throughtime.decoding.beam import Search, beam_search
from throughtime.errors import ConfigError, DivergedError


class Even:
    """All tokens are equally likely."""

    vocabulary_size, border_id = 9, 0

    def initial_state(self, batch_size: int) -> None:
        return None

    def step(self, tokens: Tensor, state: None) -> tuple[Tensor, None]:
        return torch.zeros(len(tokens), 9), None


def test_phrases_are_tuples_and_a_search_a_value() -> None:
    search = Search(banned=[3, [1, 2]], required=[(4,), 5], prefix=[6, 7])
    assert search == Search(banned=((3,), (1, 2)), required=((4,), (5,)), prefix=(6, 7))
    assert hash(search) == hash(Search(banned=[3, (1, 2)], required=[4, 5], prefix=(6, 7)))
    assert search.prefixes(2) == ((6, 7), (6, 7))
    assert Search(prefix=[[1], [], [2, 3]]).prefixes(3) == ((1,), (), (2, 3))
    assert Search(required=[(1, 2, 3), 2, (2, 3), (3, 1), (3, 1)]).required_phrases == ((1, 2, 3), (3, 1))


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (
            {"length_penalty": -1.0, "coverage_penalty": math.inf, "minimum_length": -2, "no_repeat_ngram": -1},
            "length_penalty must be a number >= 0 (0: off), got -1.0; coverage_penalty must be a number >= 0 (0: off), "
            "got inf; minimum_length must be a whole number of tokens >= 0, got -2; no_repeat_ngram must be a whole "
            "number of tokens >= 0 (0: off), got -1",
        ),
        (
            {"minimum_length": 1.5, "no_repeat_ngram": True, "groups": 2.0, "prefix": [1, 1]},
            "minimum_length must be a whole number of tokens >= 0, got 1.5; no_repeat_ngram must be a whole number of "
            "tokens >= 0 (0: off), got True; groups must be a whole number of groups >= 1, got 2.0",
        ),
        (
            {"groups": 0, "diversity": -0.5, "banned": [[]], "required": [(1,), ()]},
            "groups must be a whole number of groups >= 1, got 0; diversity must be a number >= 0 (0: off), got -0.5; "
            "banned must be tokens, or phrases of at least one, got ((),); required must be tokens, or phrases of at "
            "least one, got ((1,), ())",
        ),
        (
            {"banned": [(1, 2)], "required": [(1, 2), (0, 1, 2), (2, 1)]},
            "required [1, 2] holds [1, 2], which is banned; leave one of them out; required [0, 1, 2] holds [1, 2], "
            "which is banned; leave one of them out",
        ),
        (
            {"prefix": [[1], [4, 5, 4, 5]], "banned": [5], "no_repeat_ngram": 2},
            "prefix [4, 5, 4, 5] holds [5], which is banned; leave one of them out; prefix [4, 5, 4, 5] holds [4, 5] "
            "twice; allow that with another no_repeat_ngram than 2",
        ),
    ],
)
def test_what_cannot_be_meant(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=f"^Search: {re.escape(text)}$"):
        Search(**keys)


@pytest.mark.parametrize(
    ("keys", "search", "text"),
    [
        (
            {"length": 5},
            {"required": [(1, 2, 3, 4), (5, 6, 7)]},
            "required phrases take at least 7 tokens, the maximum length is 5; require less, or allow a greater length",
        ),
        (
            {"length": 5, "width": 0, "n_best": 0},
            {"minimum_length": 6, "prefix": [1, 2, 3, 4, 5, 6]},
            "width must be >= 1, got 0; n_best must be >= 1, got 0; minimum_length must be <= 5, the maximum "
            "length, got 6; prefix has 6 tokens, the maximum length is 5; allow a greater length",
        ),
        (
            {"length": 4},
            {"required": [(1, 2), (3, 4)], "prefix": [[1, 2, 3], [1, 2, 7]]},
            "required phrases take at least 2 tokens more than the prefix of row 1, of 3 tokens; the maximum length is "
            "4: require less, or allow a greater length",
        ),
        ({"length": 4}, {"required": [(1, 2), (3, 4)], "prefix": [[1, 2, 3], [1, 2, 3]]}, None),
        ({"length": 3}, {"required": [(1, 2), (2, 1)]}, None),
        ({"length": 3.5, "width": True}, {}, "length must be a whole number, got 3.5; width must be a whole number"),
        ({"n_best": "2"}, {}, "n_best must be a whole number, got '2'"),
        ({"width": 5}, {"groups": 2}, "width must be a multiple of the 2 groups, got 5"),
        (
            {},
            {"prefix": [[1], [2], [3]]},
            "prefix must be tokens for all rows, or a sequence of tokens for each of the 2 rows, got 3 sequences",
        ),
        (
            {},
            {"banned": [9, (0, 1)], "required": [(-1, 2)], "prefix": [3, 0]},
            "banned tokens must be in 0..8, the model's vocabulary, got 9; banned must not go on behind 0, the end of "
            "a sequence; leave it out; required tokens must be in 0..8, the model's vocabulary, got -1; prefix must "
            "not go on behind 0, the end of a sequence; leave it out",
        ),
        (
            {},
            {"coverage_penalty": 0.5},
            "coverage_penalty needs a model with attention(state) and source_mask(state), got Even; set it to 0",
        ),
    ],
)
def test_what_this_model_cannot_do(keys: dict[str, Any], search: dict[str, Any], text: str | None) -> None:
    keys = {"length": 6, "width": 4, "stop": EndSymbol(), **keys}
    if text is None:
        assert beam_search(Even(), [[0, 0]], **keys, search=Search(**search)).scores.isfinite().all()
        return
    with pytest.raises(ConfigError, match=f"^beam_search: {re.escape(text)}"):
        beam_search(Even(), [[0, 0]], **keys, search=Search(**search))


@pytest.mark.parametrize("given", ["banned", "required", "prefix"])
def test_phrases_come_in_a_list(given: str) -> None:
    with pytest.raises(ConfigError, match=f"^Search: {given} must be tokens or phrases in a list, got 3$"):
        Search(**{given: 3})


def test_a_model_that_could_attend_but_does_not() -> None:
    class Blind(Even):
        def attention(self, state: None) -> None:
            return None

        def source_mask(self, state: None) -> None:
            return None

    assert beam_search(Blind(), length=2, width=2).attention is None
    with pytest.raises(
        ConfigError, match=r"^beam_search: coverage_penalty needs a model that attends, got Blind without attention; "
        r"set it to 0$"
    ):  # fmt: skip
        beam_search(Blind(), length=2, width=2, search=Search(coverage_penalty=0.1))


def test_the_first_of_equals() -> None:
    # Even where nothing tells sequences apart, the order is one that can be foretold.
    found = beam_search(Even(), length=2, width=3, n_best=4, search=Search(banned=[1]))
    assert found.tokens[:, 0].mT.tolist() == [[0, 0], [0, 2], [0, 3], [0, 4]]


@pytest.mark.parametrize(
    "search", [Search(), Search(required=[3]), Search(groups=2, diversity=1.0), Search(no_repeat_ngram=1)]
)
def test_logits_that_are_no_numbers(search: Search) -> None:
    class Broken(Even):
        def step(self, tokens: Tensor, state: None) -> tuple[Tensor, None]:
            logits = torch.zeros(len(tokens), 9)
            logits[tokens == 2] = math.nan
            return logits, None

    with pytest.raises(DivergedError, match="Broken gave logits that are not finite"):
        beam_search(Broken(), [[0, 0]], length=5, width=4, search=search)
