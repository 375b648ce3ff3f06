"""The native loop and the model's own steps: which one runs, and that both write the same."""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import throughtime as tt
from throughtime.data import Tokenizer
from throughtime.decoding import EndSymbol, GenerationConfig, engines, explain, greedy, sample, stream, write_texts
from throughtime.decoding.randomness import RowUniforms
from throughtime.errors import ConfigError, DivergedError, EngineError
from throughtime.kernels.native import library
from throughtime.kernels.native.generation import Stepper

needs_native = pytest.mark.skipif(library.missing_reason() is not None, reason="no native engine here")

MODELS: list[dict[str, Any]] = [
    {"cell": "lstm"},
    {"cell": "gru", "num_layers": 2, "residual": True, "zoneout": 0.1},
    {"cell": "rnn", "num_layers": 3, "hidden_size": [5, 17, 33]},
    {"cell": "lstm", "num_layers": 2, "hidden_size": 24, "tied": True, "dropout": 0.3, "weight_dropout": 0.2},
]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.6},
    {"top_k": 5},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"repetition_penalty": 1.5},
    {"temperature": 1.4, "top_k": 12, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 0.9},
]


def language_model(**keys: Any) -> tt.models.LanguageModel:
    torch.manual_seed(0)
    sizes = {"vocabulary_size": 40, "hidden_size": 33, "embedding_size": 24, "border_id": 3}
    model = tt.models.LanguageModel(**{**sizes, **keys})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


@needs_native
@pytest.mark.parametrize("keys", MODELS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_same_seed_gives_the_same_tokens_on_both(keys: dict[str, Any], settings: dict[str, Any]) -> None:
    model = language_model(**keys)
    assert explain(model).engine == "native"
    for stop in (None, EndSymbol()):
        decoded = [
            sample(model, [1, 2, 30], length=60, samples=4, seed=11, stop=stop, engine=engine, **settings)
            for engine in ("native", "model")
        ]
        assert torch.equal(decoded[0].tokens, decoded[1].tokens)
        assert torch.equal(decoded[0].lengths, decoded[1].lengths)
        torch.testing.assert_close(decoded[0].log_probs, decoded[1].log_probs, rtol=0, atol=1e-5)


@needs_native
def test_the_same_seed_gives_the_same_text_on_both() -> None:
    tokenizer = Tokenizer.train("bytes")
    model = language_model(vocabulary_size=tokenizer.vocabulary_size, border_id=tokenizer.border_id)
    config = GenerationConfig(length=300, samples=3, seed=5, temperature=0.5, stop=["qu"])
    native, own = (
        write_texts(model, tokenizer, "", config.model_copy(update={"engine": engine}))
        for engine in ("native", "model")
    )
    assert native == own
    quantised = write_texts(model, tokenizer, "", config.model_copy(update={"precision": "int8"}))
    assert quantised != native
    assert quantised == write_texts(model, tokenizer, "", config.model_copy(update={"precision": "int8"}))


@needs_native
def test_log_probabilities_equal_the_references() -> None:
    model = language_model(num_layers=2, hidden_size=129)
    decoded = sample(model, length=40, samples=3, seed=2, temperature=0.3, engine="native")
    reference = language_model(num_layers=2, hidden_size=129, engine="reference")
    expected = reference.eval().log_prob(decoded.tokens).steps
    torch.testing.assert_close(decoded.log_probs.float(), expected, rtol=0, atol=1e-5)


# -- which one ---------------------------------------------------------------------------------------------------------


class OwnModel(tt.models.LanguageModel):
    """May compute anything."""


def hooked() -> tt.models.LanguageModel:
    model = language_model()
    model.readout.register_forward_hook(lambda module, inputs, outputs: outputs * 2)
    return model


def replaced() -> tt.models.LanguageModel:
    model = language_model()
    model.readout = nn.Sequential(model.readout)
    return model


def overridden() -> tt.models.LanguageModel:
    model = language_model()
    model.step = model.step  # type: ignore[method-assign]
    return model


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: language_model(layer_norm=True), "native steps are without layer normalisation inside the cell"),
    (lambda: language_model(engine="reference"), "the layer was made with engine='reference'"),
    (lambda: language_model().double(), "native steps are for float32 on the CPU, the weights are torch.float64"),
    (lambda: OwnModel(vocabulary_size=9), "OwnModel is no tt.models.LanguageModel and may compute something else"),
    (hooked, "the model has hooks or replaced parts, which only its own steps run"),
    (replaced, "the model has hooks or replaced parts"),
    (overridden, "the model has hooks or replaced parts"),
]


@needs_native
@pytest.mark.parametrize(("make", "reason"), REFUSED)
def test_what_the_native_engine_does_not_decode_decodes_itself(make: Callable[[], Any], reason: str) -> None:
    model = make()
    choice = explain(model)
    assert choice.engine == "model"
    assert str(choice).startswith(f"decoding {type(model).__name__}: model\n    not native: {reason}")
    assert greedy(model, [1], length=2).tokens.shape == (2, 1)
    with pytest.raises(EngineError, match=f"^decoding .*: engine='native' needs the native engine: {reason}"):
        greedy(model, [1], length=2, engine="native")
    with pytest.raises(EngineError, match=f"precision='int8' needs the native engine: {reason}.*; precision='fp32' wi"):
        greedy(model, [1], length=2, precision="int8")
    assert explain(model, precision="bf16").engine == "none"


@needs_native
def test_autocast_is_the_models_own() -> None:
    model = language_model()
    with torch.autocast("cpu", torch.bfloat16):
        assert explain(model).refused == (("native", "autocast changes what the model computes"),)


def test_without_the_native_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "missing_reason", lambda: "the native engine is not built")
    model = language_model()
    assert explain(model).engine == "model"
    assert len(greedy(model, length=3).tokens) == 3
    with pytest.raises(EngineError, match="precision='int8' needs the native engine: the native engine is not built"):
        greedy(model, length=3, precision="int8")


def test_names_that_there_are_none_of() -> None:
    with pytest.raises(EngineError, match=r"^decoding: precision must be one of fp32, bf16, int8, got 'fp16'$"):
        greedy(language_model(), length=1, precision="fp16")
    with pytest.raises(EngineError, match=r"^decoding: engine must be one of auto, native, model, got 'torch'$"):
        greedy(language_model(), length=1, engine="torch")
    with pytest.raises(EngineError, match="precision='int8' needs the native engine: engine='model' was asked for"):
        greedy(language_model(), length=1, precision="int8", engine="model")


# -- packed once -------------------------------------------------------------------------------------------------------


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The precision of every packing."""
    made: list[str] = []
    pack = engines.PackedModel

    def counted(*given: Any, **settings: Any) -> Any:
        made.append(settings["precision"])
        return pack(*given, **settings)

    monkeypatch.setattr(engines, "PackedModel", counted)
    return made


@needs_native
def test_a_model_is_packed_once_for_each_precision(packings: list[str]) -> None:
    model = language_model()
    for precision in ("fp32", "int8", "fp32", "int8"):
        greedy(model, length=2, precision=precision)
    assert packings == ["fp32", "int8"]
    greedy(language_model(), length=2)
    assert packings == ["fp32", "int8", "fp32"]


def by_optimizer(model: tt.models.LanguageModel, **settings: Any) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5, **settings)
    model.log_prob(torch.ones(3, 1, dtype=torch.int64)).total.sum().backward()
    optimizer.step()


def in_place(model: tt.models.LanguageModel) -> None:
    with torch.no_grad():
        model.recurrent.weight_hh_l0.mul_(-1)


def replace_one(model: tt.models.LanguageModel) -> None:
    model.readout.weight_ho = nn.Parameter(-model.readout.weight_ho.detach())


def new_data(model: tt.models.LanguageModel) -> None:
    model.readout.weight_ho.data = -model.readout.weight_ho.data


def swap_rows(model: tt.models.LanguageModel) -> None:
    weight = model.readout.weight_ho.data
    weight[[1, 2]] = weight[[2, 1]]


CHANGES: list[Callable[[tt.models.LanguageModel], Any]] = [
    by_optimizer,
    lambda model: by_optimizer(model, fused=True),
    lambda model: by_optimizer(model, foreach=True),
    in_place,
    replace_one,
    new_data,
    lambda model: model.load_state_dict({name: -value for name, value in model.state_dict().items()}),
    lambda model: model.load_tensors({name: -value.detach() for name, value in model.tensors().items()}, origin=""),
    lambda model: setattr(model.recurrent, "zoneout", (0.4, 0.4)),
    lambda model: model.embedding.weight.data[3].neg_(),  # the border, which comes first
    swap_rows,
]


@needs_native
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_packed_again(packings: list[str], change: Callable[[tt.models.LanguageModel], Any]) -> None:
    model = language_model()
    before = sample(model, length=10, seed=1)
    change(model)
    after = sample(model, length=10, seed=1)
    assert packings == ["fp32", "fp32"]
    own = sample(model, length=10, seed=1, engine="model").log_probs
    torch.testing.assert_close(after.log_probs, own, rtol=0, atol=1e-5)
    assert not torch.equal(before.log_probs, after.log_probs)


@needs_native
def test_a_packed_model_goes_with_its_model() -> None:
    model = language_model()
    greedy(model, length=1)
    count = len(engines._packings)
    assert model in engines._packings
    del model
    gc.collect()
    assert len(engines._packings) < count


# -- streaming ---------------------------------------------------------------------------------------------------------


@needs_native
def test_tokens_come_in_chunks_that_begin_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    generate = Stepper.generate

    def counted(self: Stepper, steps: int, *given: Any, **settings: Any) -> Any:
        asked.append(steps)
        return generate(self, steps, *given, **settings)

    monkeypatch.setattr(Stepper, "generate", counted)
    steps = stream(language_model(), length=10**9, seed=1)
    first = next(steps)
    assert asked == [1]
    rest = [next(steps) for _ in range(200)]
    assert asked[:3] == [1, 2, 4]
    expected = sample(language_model(), length=201, seed=1).tokens
    assert torch.equal(torch.stack([first, *rest]), expected)


@needs_native
def test_uniforms_in_blocks_are_those_one_by_one() -> None:
    one, several = RowUniforms(3, 7), RowUniforms(3, 7)
    blocks = torch.cat([several.block(count) for count in (1, 2, 0, 70, 5)], dim=1)
    assert torch.equal(torch.stack([one.draw() for _ in range(78)], dim=1), blocks)
    assert torch.equal(one.draw(), several.draw())
    assert torch.equal(torch.stack([one.draw() for _ in range(100)], dim=1), several.block(100))


@needs_native
@pytest.mark.skipif(not hasattr(signal, "SIGPROF"), reason="needs a timer signal")
def test_an_interrupt_comes_through_and_leaves_things_sound() -> None:
    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    model = language_model()
    before = signal.signal(signal.SIGPROF, interrupt)
    try:
        signal.setitimer(signal.ITIMER_PROF, 0.3)
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            sample(model, length=10**9, seed=1)
        assert time.monotonic() - began < 60
    finally:
        signal.signal(signal.SIGPROF, before)
    decoded = sample(model, length=50, seed=1)
    assert torch.equal(decoded.tokens, sample(model, length=50, seed=1, engine="model").tokens)


@needs_native
def test_a_model_that_has_diverged_is_told_where_it_does() -> None:
    model = language_model(cell="rnn")
    with torch.no_grad():
        # Only after token 5, which only token 1 is followed by.
        model.embedding.weight[5] = torch.nan
    with pytest.raises(DivergedError, match="LanguageModel gave logits that are not finite; its weights have diverged"):
        sample(model, [5], length=5, seed=0)
    finite = stream(model, [1], length=400, seed=0)
    drawn = []
    with pytest.raises(DivergedError):
        drawn.extend(int(tokens) for tokens in finite)
    assert drawn.index(5) == len(drawn) - 1


@needs_native
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_narrow_weights_are_near_the_model(precision: str) -> None:
    model = language_model(num_layers=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.div_(3)
    decoded = sample(model, length=30, samples=2, seed=1, precision=precision)
    own = model.eval().log_prob(decoded.tokens).steps
    torch.testing.assert_close(decoded.log_probs.float(), own, rtol=0, atol=0.02)
    assert not torch.equal(decoded.log_probs, sample(model, length=30, samples=2, seed=1).log_probs)


def test_the_section_of_a_configuration_checks_the_names() -> None:
    from throughtime.configuration import validate

    assert validate(GenerationConfig, {"precision": "int8", "engine": "native"}, where="x").precision == "int8"
    with pytest.raises(ConfigError, match=r"2 faults: precision: .*'fp32', 'bf16' or 'int8'.*; engine: "):
        validate(GenerationConfig, {"precision": "fp16", "engine": "torch"}, where="generate")
