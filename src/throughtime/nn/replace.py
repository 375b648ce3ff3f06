"""Swap every recurrent layer of torch in a model for ours."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from throughtime.cells import GRUCell, LSTMCell, RNNCell
from throughtime.errors import UsageError
from throughtime.nn.layers import GRU, LSTM, RNN


def replace_torch_layers(module: nn.Module) -> int:
    """Swap every `torch.nn.{RNN,LSTM,GRU}` and `{RNN,LSTM,GRU}Cell` within `module`, in place; returns how many.

    The new layers hold the very same parameters, so an optimizer made before goes on working, and results are the
    same. A layer that stands in several places is swapped once and stays shared. Subclasses of torch's layers are left
    as they are: what they add cannot be known.

    Raises:
        UsageError: `module` is itself such a layer (only what holds it can be changed), or a layer's parameters are
            parametrised (weight norm, pruning), which is to be removed first.
    """
    if type(module) in _MAKERS:
        name = type(module).__name__
        raise UsageError(
            f"replace_torch_layers: expected a module that contains layers, got a torch.nn.{name} itself; "
            f"make a tt.nn.{name} and load its state dict"
        )
    made: dict[nn.Module, nn.Module] = {}
    for holder in list(module.modules()):
        for name, child in list(holder.named_children()):
            if type(child) in _MAKERS:
                made[child] = made.get(child) or _remade(child)
                setattr(holder, name, made[child])
    return len(made)


def _remade(old: nn.Module) -> nn.Module:
    if hasattr(old, "parametrizations") or any(True for _ in old.children()):
        raise UsageError(
            f"replace_torch_layers: a torch.nn.{type(old).__name__} has parametrised weights; "
            "remove the parametrisation first (torch.nn.utils.parametrize.remove_parametrizations)"
        )
    new = _MAKERS[type(old)](old)
    for name, parameter in old.named_parameters(recurse=False):
        setattr(new, name, parameter)
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        getattr(new, hooks).update(getattr(old, hooks))
    return new.train(old.training)


def _layer(kind: type[nn.Module]) -> Callable[[nn.Module], nn.Module]:
    names = ["input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional"]
    names += ["nonlinearity"] if kind is RNN else ["proj_size"] if kind is LSTM else []
    # The old parameters move in, so the new ones need no memory.
    return lambda old: kind(**{name: getattr(old, name) for name in names}, device="meta")


def _cell(kind: type[nn.Module]) -> Callable[[nn.Module], nn.Module]:
    names = ["input_size", "hidden_size", "bias"] + (["nonlinearity"] if kind is RNNCell else [])
    return lambda old: kind(**{name: getattr(old, name) for name in names}, device="meta")


_MAKERS: dict[type[nn.Module], Callable[[nn.Module], nn.Module]] = {
    nn.RNN: _layer(RNN),
    nn.LSTM: _layer(LSTM),
    nn.GRU: _layer(GRU),
    nn.RNNCell: _cell(RNNCell),
    nn.LSTMCell: _cell(LSTMCell),
    nn.GRUCell: _cell(GRUCell),
}
