"""Which engine chooses tokens: the native one, which keeps a model's weights packed, or the model's own steps."""

from __future__ import annotations

import threading
import weakref
from typing import Any, NamedTuple

import torch
from torch import nn

from throughtime.errors import EngineError
from throughtime.kernels import Choice
from throughtime.kernels.native.generation import PRECISIONS, Ends, PackedModel, fingerprint
from throughtime.layers import Readout
from throughtime.models.language import LanguageModel
from throughtime.nn.stepping import layer_weights, stepping_refusal

ENGINES = ("auto", "native", "model")
_OWN = frozenset(("forward", "step", "read", "initial_state"))


def explain(model: Any, *, precision: str = "fp32", engine: str = "auto") -> Choice:
    """Which engine would decode `model`, and why not the native one; nothing is computed.

    Its `engine` is "native", or "model": the model's own `step`, whatever engine that runs on. "none" means that what
    was asked for cannot be had.

        >>> import throughtime as tt
        >>> model = tt.models.LanguageModel(vocabulary_size=9, hidden_size=8, layer_norm=True)
        >>> print(tt.decoding.explain(model))
        decoding LanguageModel: model
            not native: native steps are without layer normalisation inside the cell, which the layer has

    Raises:
        EngineError: there is no engine or no precision of that name.
    """
    _check_names(precision, engine)
    where = f"decoding {type(model).__name__}"
    if engine == "model":
        own = "none" if precision != "fp32" else "model"
        return Choice(where, own, (("native", "engine='model' was asked for"),))
    if (reason := _refusal(model)) is None:
        return Choice(where, "native", ())
    return Choice(where, "model" if engine == "auto" and precision == "fp32" else "none", (("native", reason),))


def chosen_model(model: Any, *, precision: str, engine: str) -> PackedModel | None:
    """The packed model where the native engine decodes, None where the model's own steps do.

    A model is packed once, and again when its parameters have other values.

    Raises:
        EngineError: what was asked for cannot be had.
    """
    choice = explain(model, precision=precision, engine=engine)
    if choice.engine == "none":
        (_, reason), *_ = choice.refused
        asked = f"precision={precision!r}" if precision != "fp32" else f"engine={engine!r}"
        raise EngineError(
            f"{choice.where}: {asked} needs the native engine: {reason}; precision='fp32' with engine='auto' decodes "
            "every model"
        )
    return _packed(model, precision) if choice.engine == "native" else None


def _check_names(precision: str, engine: str) -> None:
    if precision not in PRECISIONS:
        raise EngineError(f"decoding: precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if engine not in ENGINES:
        raise EngineError(f"decoding: engine must be one of {', '.join(ENGINES)}, got {engine!r}")


def _refusal(model: Any) -> str | None:
    """Why the native engine cannot decode the model; None where it can."""
    if type(model) is not LanguageModel:
        return f"{type(model).__name__} is no tt.models.LanguageModel and may compute something else"
    parts = (type(model.embedding), type(model.readout))
    changed = _OWN & vars(model).keys() or parts != (nn.Embedding, Readout)
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    if changed or hooked:
        return "the model has hooks or replaced parts, which only its own steps run"
    if torch.is_autocast_enabled("cpu"):
        return "autocast changes what the model computes"
    return stepping_refusal(model.recurrent)


class _Packings(NamedTuple):
    """What a model's weights were when it was packed, and the result for each precision."""

    fingerprint: Any
    by_precision: dict[str, PackedModel]


_packings: weakref.WeakKeyDictionary[nn.Module, _Packings] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _packed(model: LanguageModel, precision: str) -> PackedModel:
    now = _fingerprint(model)
    with _lock:
        known = _packings.get(model)
        if known is None or known.fingerprint != now:
            known = _packings[model] = _Packings(now, {})
        if precision not in known.by_precision:
            ends = Ends(model.embedding.weight, model.readout.weight_ho, model.readout.bias_ho)
            layers = layer_weights(model.recurrent)
            known.by_precision[precision] = PackedModel(
                layers, ends, residual=model.recurrent.residual, precision=precision
            )
        return known.by_precision[precision]


def _fingerprint(model: LanguageModel) -> Any:
    """What changes when the model does. PyTorch's count of changes is not enough: fused optimizers do not count."""
    values = tuple(fingerprint(parameter) for parameter in model.parameters())
    return values, model.recurrent.zoneout, model.recurrent.residual
