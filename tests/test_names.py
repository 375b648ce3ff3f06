"""The public names are a contract, and touching the package costs nothing until one of them is used."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest
import torch

import throughtime as tt

NAMES = [
    "Cell",
    "ThroughtimeError",
    "unfold",
    "nn.RNN",
    "nn.LSTM",
    "nn.GRU",
    "nn.RNNCell",
    "nn.LSTMCell",
    "nn.GRUCell",
    "nn.replace_torch_layers",
    "bptt.explain",
    "bptt.truncated",
    "bptt.RealTimeRecurrentLearning",
    "kernels.explain",
    "models.LanguageModel",
    "models.LanguageModel.save",
    "models.LanguageModel.load",
    "models.LanguageModel.log_prob",
    "models.LanguageModel.sample",
    "bptt.flow",
    "bptt.information_flow",
    "bptt.clip_by_sequence",
    "bptt.sequence_gradients",
    "bptt.step_gradients",
    "decoding.BernoulliHalt",
    "decoding.EndSymbol",
    "decoding.PredictedLength",
    "decoding.Ensemble",
    "decoding.Search",
    "decoding.beam_search",
    "decoding.given",
    "decoding.greedy",
    "decoding.length_error",
    "inspection.attention",
    "inspection.draw_attention",
    "inspection.draw_flow",
    "inspection.edge_gradients",
    "inspection.influence",
    "inspection.unfolded_graph",
    "models.ConditionalRecurrent",
    "models.ContextToSequence",
    "models.EchoStateNetwork",
    "models.EncoderDecoder",
    "models.EncoderDecoder.load",
    "models.EncoderDecoder.log_prob",
    "models.EncoderDecoder.sample",
    "models.EncoderDecoder.save",
    "models.HiddenRecurrent",
    "models.HiddenRecurrent.load",
    "models.HiddenRecurrent.log_prob",
    "models.HiddenRecurrent.sample",
    "models.HiddenRecurrent.save",
    "models.OutputRecurrent",
    "models.SequenceSummary",
    "nn.CellStack",
    "nn.DeepTransitionCell",
    "nn.LeakyCell",
    "nn.SkipCell",
    "nn.chrono_",
    "tasks.design.train",
    "universal.from_turing_machine",
    "decoding.sample",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_exists_and_says_what_it_is(name: str) -> None:
    thing = tt
    for part in name.split("."):
        thing = getattr(thing, part)
    assert inspect.getdoc(thing)


@pytest.mark.parametrize(
    "module",
    [
        "bptt",
        "cells",
        "decoding",
        "inspection",
        "kernels",
        "layers",
        "models",
        "nn",
        "recurrence",
        "tasks",
        "universal",
    ],
)
def test_what_a_floor_hands_on_exists(module: str) -> None:
    floor = importlib.import_module(f"throughtime.{module}")
    assert list(floor.__all__) == sorted(set(floor.__all__), key=floor.__all__.index)
    assert all(hasattr(floor, name) for name in floor.__all__)


def test_the_package_lists_its_names() -> None:
    assert set(tt.__all__) <= set(dir(tt))
    assert all(hasattr(tt, name) for name in tt.__all__)
    with pytest.raises(AttributeError, match="module 'throughtime' has no attribute 'lstm'"):
        tt.lstm  # noqa: B018


@pytest.mark.parametrize(
    ("name", "base"),
    [("RNN", "RNN"), ("LSTM", "LSTM"), ("GRU", "GRU"), ("RNNCell", "RNNCell"), ("LSTMCell", "LSTMCell")],
)
def test_layers_are_modules_and_cells_are_cells(name: str, base: str) -> None:
    ours = getattr(tt.nn, name)
    assert issubclass(ours, torch.nn.Module)
    assert ours.__name__ == getattr(torch.nn, base).__name__
    assert issubclass(ours, tt.Cell) == name.endswith("Cell")


def test_the_extras_are_keywords_only() -> None:
    parameters = inspect.signature(tt.nn.RecurrentLayer.__init__).parameters
    extras = (
        "recurrent_dropout",
        "variational_dropout",
        "zoneout",
        "layer_norm",
        "weight_dropout",
        "residual",
        "engine",
    )
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in extras)
    forward = inspect.signature(tt.nn.RecurrentLayer.forward).parameters
    assert all(forward[name].kind is inspect.Parameter.KEYWORD_ONLY for name in ("lengths", "resets", "return_states"))


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = ["torch", "numpy", "datasets", "pydantic", "matplotlib", "rich", "tokenizers", "pyarrow", "accelerate"]
    program = f"import sys, throughtime; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
