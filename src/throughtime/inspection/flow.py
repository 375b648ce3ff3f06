"""`tt.bptt.flow`: how gradients flow back through time in a cell, a layer, a model, or a trained run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from throughtime.data.sources import TextSource
from throughtime.data.streams import TokenStreams
from throughtime.errors import DataError, UsageError
from throughtime.layers import in_evaluation_mode
from throughtime.models.flow import model_flow
from throughtime.recurrence import flow as layers_flow
from throughtime.recurrence.flow import Flow, LossOfOutputs
from throughtime.tasks import design, language
from throughtime.tasks.texts import held_out, prepared
from throughtime.training.run_folder import RunFolder

# Sequences of a run's text that are looked at.
_ROWS = 8


def flow(
    source: Any,
    inputs: Any = None,
    loss: LossOfOutputs | None = None,
    *,
    data: Sequence[str] = (),
    at: int | Sequence[int] = 16,
    max_lag: int | None = None,
    jacobians: int = 0,
    seed: int = 0,
    **call: Any,
) -> Flow:
    """Measure ‖∂L(t)/∂h(t-k)‖ for many t by lag k, and if asked the singular values of ∂h(t)/∂h(t-k).

        >>> import torch, throughtime as tt
        >>> from throughtime.inspection.flow import flow
        >>> _ = torch.manual_seed(0)
        >>> found = flow(tt.nn.RNN(3, 8), torch.randn(50, 4, 3), jacobians=1)
        >>> found.by_lag.shape, bool(found.by_lag[40] < 1e-4 * found.by_lag[0])
        (torch.Size([50]), True)

    Nothing is changed, nothing drawn from PyTorch's generators; all is measured in evaluation mode.

    Args:
        source: a `tt.Cell`, a layer of `tt.nn`, a model of `tt.models`, or the folder of a trained run.
        inputs: what the cell, layer or model is called with; a run brings its own.
        loss: for a cell or layer: of outputs (T, B, H), time first, the losses L(t) (T, B), each of h(t) alone. When
            missing, L(t) is the product of h(t) and a random direction of length 1. Models and runs have their own.
        data: for a language model's run: text to measure on instead of its held-out text: files, folders or globs.
        at: which losses: how many, evenly spaced over time up to the last step, or the very t, counted from 0.
        max_lag: the longest lag; when missing, as far as t reaches.
        jacobians: how many leading singular values of ∂h(t)/∂h(t-k) to find, of the last sampled t, at lags 1, 2, 4, …
        seed: of the random directions.
        call: what else the layer or model is called with: `state`, `lengths`, `resets`; a model's `targets`.

    Raises:
        UsageError: something without time steps, a bidirectional layer, t or lags out of range, arguments of another
            kind of source.
        ShapeError: tensors that do not fit.
        RunFolderError, CheckpointError, DataError: a run, its weights or its text that cannot be read.

    Source: Goodfellow, Bengio & Courville 2016, section 10.7; Pascanu, Mikolov & Bengio 2013.
    """
    options: dict[str, Any] = {"at": at, "max_lag": max_lag, "jacobians": jacobians, "seed": seed}
    if isinstance(source, (str, Path)):
        if inputs is not None or loss is not None or call:
            raise UsageError("flow: a run brings its own inputs and loss; give data= to measure on another text")
        run = open_run(Path(source), data)
        return model_flow(run.model, *run.arguments, **options, **run.call)
    if data:
        raise UsageError(f"flow: data= is for run folders, got a {type(source).__name__}; give inputs")
    if isinstance(source, nn.Module) and hasattr(source, "recurrent") and not hasattr(source, "recurrences"):
        if loss is not None:
            raise UsageError(f"flow: {type(source).__name__} has a loss of its own; give targets= and no loss")
        return model_flow(source, *([] if inputs is None else [inputs]), **options, **call)
    if inputs is None:
        raise UsageError(f"flow: {type(source).__name__} needs inputs, got none; give inputs (T, B, input_size)")
    with in_evaluation_mode(source):
        return layers_flow.flow(source, inputs, loss, **options, **call)


@dataclass(frozen=True, eq=False)
class OpenRun:
    """A trained model and a call of it that gives its losses."""

    model: nn.Module
    arguments: tuple[Any, ...]
    call: dict[str, Any]


def open_run(run: Path, data: Sequence[str] = ()) -> OpenRun:
    """The model of a run folder with a few of the sequences held out from its training, or a window of `data`.

    Raises:
        RunFolderError: no run folder, or one without a model yet.
        CheckpointError: the weights are damaged.
        UsageError: `data` for a run whose sequences are not text.
        DataError: a text that cannot be read, or that has no two steps.
    """
    if RunFolder.task_of(run) == language.NAME:
        return _language_run(run, data)
    if data:
        raise UsageError(
            f"flow: {run}: data= is text for a language model's run; leave it out: the run keeps sequences"
        )
    sequences = design.held_out(run)
    few = sequences.select(torch.arange(min(_ROWS, len(sequences))))
    return OpenRun(design.load(run), (few.x,), {"targets": few.targets, "lengths": few.lengths})


def _language_run(run: Path, data: Sequence[str]) -> OpenRun:
    model, tokenizer, config = language.load(run)
    if data:
        source = TextSource(data, column=config.data.column, errors=config.data.errors)
        tokens = prepared(source, tokenizer)
    else:
        tokens = held_out(config.data, tokenizer)
    predicted = len(tokens.tokens) - 1
    if predicted < 2:
        raise DataError(f"flow: {run}: the text has {max(predicted, 0)} tokens to predict, at least 2 are needed; give "
                        "more with --data")  # fmt: skip
    window = min(config.training.window, predicted)
    batch = TokenStreams(tokens, min(_ROWS, predicted // window), window).batch(0)
    return OpenRun(model, (batch.inputs,), {"targets": batch.targets, "resets": batch.resets})
