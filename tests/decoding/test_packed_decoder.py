"""Decoding with packed weights is decoding by the model's own modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.utils import parametrizations, prune

import throughtime as tt
from throughtime.decoding import beam_search, given, of_source
from throughtime.decoding.packed_decoder import folded_encoder, packed_decoder
from throughtime.kernels.native import library

pytestmark = pytest.mark.skipif(bool(library.missing_reason()), reason=str(library.missing_reason()))
LENGTHS = (6, 1, 4)


def translator(**keys: Any) -> tt.models.EncoderDecoder:
    torch.manual_seed(3)
    sizes = {"source_vocabulary_size": 7, "target_vocabulary_size": 11, "hidden_size": 20, "embedding_size": 13}
    model = tt.models.EncoderDecoder(**(sizes | keys)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"cell": "gru", "attention": "dot", "num_layers": 2, "residual": True, "zoneout": 0.2},
        {"cell": "rnn", "attention": "additive", "num_layers": 3},
        {"attention": "general", "num_layers": 2, "input_feeding": True, "layer_norm": False},
        {"attention": "general", "coverage": True, "num_layers": 2},
        {"attention": "none", "bidirectional": False, "bridge": "linear"},
        {"source_vocabulary_size": 40, "tied": "target", "embedding_size": 20},
        {"stop": "predicted_length", "max_length": 5, "num_layers": 2, "residual": True},
        {"stop": "bernoulli_halt"},
    ],
    ids=str,
)
@pytest.mark.parametrize("width", [2, 8])
def test_beams_are_the_same(keys: dict[str, Any], width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = translator(**keys)
    sources = torch.randint(7, (6, 3))
    assert packed_decoder(model) is not None
    search = {"length": 7, "width": width, "n_best": 2}
    found = beam_search(given(model, inputs=sources, lengths=LENGTHS), **search)
    monkeypatch.setattr(of_source, "packed_decoder", lambda model: None)
    expected = beam_search(given(model, inputs=sources, lengths=LENGTHS), **search)
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.lengths, expected.lengths)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=2e-5)
    if expected.attention is not None and found.attention is not None:
        torch.testing.assert_close(found.attention, expected.attention, rtol=0, atol=1e-5)


def test_an_encoder_of_few_tokens_is_folded() -> None:
    model = translator(num_layers=2, dropout=0.3)
    state = torch.get_rng_state()
    folded = folded_encoder(model)
    assert folded is not None
    assert torch.equal(state, torch.get_rng_state())
    assert not folded.training
    tokens = torch.randint(7, (6, 3))
    lengths = torch.tensor(LENGTHS)
    expected, _ = model.encoder(model.source_embedding(tokens), lengths=lengths)
    found, _ = folded(torch.nn.functional.one_hot(tokens, 7).float(), lengths=lengths)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert folded_encoder(translator(source_vocabulary_size=13)) is None


def test_weights_that_change_are_packed_anew() -> None:
    model = translator()
    first = packed_decoder(model)
    assert packed_decoder(model) is first
    for name in ("source_embedding.weight", "combine.weight", "encoder.weight_hh_l0"):
        with torch.no_grad():
            model.get_parameter(name).add_(0.1)
        second = packed_decoder(model)
        assert second is not first
        first = second


def test_an_encoder_that_is_not_the_models_own_alone_is_not_folded() -> None:
    def hooked(model: tt.models.EncoderDecoder) -> None:
        model.encoder.register_forward_hook(lambda *_: None)

    def pruned(model: tt.models.EncoderDecoder) -> None:
        prune.l1_unstructured(model.encoder, "weight_hh_l0", 0.3)

    def normalised(model: tt.models.EncoderDecoder) -> None:
        parametrizations.weight_norm(model.encoder, "weight_hh_l0")

    def infinite(model: tt.models.EncoderDecoder) -> None:
        with torch.no_grad():
            model.source_embedding.weight[0] = torch.inf

    def another(model: tt.models.EncoderDecoder) -> None:
        class Silent(tt.nn.LSTM):
            def forward(self, *given: Any, **keys: Any) -> Any:
                outputs, final = super().forward(*given, **keys)
                return outputs * 0, final

        model.encoder.__class__ = Silent

    for change in (hooked, pruned, normalised, infinite, another):
        model = translator()
        change(model)
        assert folded_encoder(model) is None
        beam_search(given(model, inputs=torch.randint(1, 7, (4, 2))), length=3, width=2)


def test_defaults_of_type_and_device_and_autocast_change_nothing() -> None:
    model, sources = translator(), torch.randint(7, (4, 2))
    about = given(model, inputs=sources)
    expected = beam_search(about, length=4, width=3)
    torch.set_default_dtype(torch.float64)
    try:
        found = beam_search(about, length=4, width=3)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found.scores, expected.scores)
    with torch.autocast("cpu", torch.bfloat16):
        assert packed_decoder(model) is None


def test_the_state_takes_indices_of_any_kind_and_keeps_none() -> None:
    about = given(translator(), inputs=torch.randint(7, (4, 1))[:, 0])
    end = about.border_id
    _, state = about.step(torch.tensor([end, end, end]), about.initial_state(3))
    _, state = about.step(torch.tensor([1, 2, 3]), state)
    tokens = torch.tensor([4, 5])
    expected, _ = about.step(tokens, about.reorder(state, torch.tensor([2, 0])))
    for indices in (
        torch.tensor([[2, 9], [0, 9]])[:, 0],
        torch.tensor([2, 0], dtype=torch.int32),
        torch.tensor([-1, 0]),
    ):
        found, _ = about.step(tokens, about.reorder(state, indices))
        assert torch.equal(found, expected)
    indices = torch.tensor([2, 0])
    later = about.reorder(state, indices)
    indices.fill_(1)
    assert torch.equal(about.step(tokens, later)[0], expected)
    nothing = about.reorder(state, torch.empty(0, dtype=torch.int64))
    assert about.step(torch.empty(0, dtype=torch.int64), nothing)[0].shape == (0, about.vocabulary_size)
