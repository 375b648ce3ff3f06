"""Swap every recurrent layer of torch in a model for ours."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

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
            parametrised (weight norm, pruning), which is to be removed first. Nothing is changed then.
    """
    if type(module) in _MAKERS:
        name = type(module).__name__
        raise UsageError(
            f"replace_torch_layers: expected a module that contains layers, got a torch.nn.{name} itself; "
            f"make a tt.nn.{name} and load its state dict"
        )
    made: dict[nn.Module, nn.Module] = {}
    places: list[tuple[nn.Module, str, nn.Module]] = []
    for holder in module.modules():
        # Not named_children(), which tells of a layer that stands in two places only once.
        for name, child in holder._modules.items():
            if child is not None and type_before_parametrizations(child) in _MAKERS:
                if child not in made:
                    made[child] = _remade(child)
                places.append((holder, name, made[child]))
    # Only now, when nothing can fail any more: a model is swapped whole or not at all.
    for holder, name, new in places:
        setattr(holder, name, new)
    return len(made)


def _remade(old: nn.Module) -> nn.Module:
    kind = type_before_parametrizations(old)
    new = _MAKERS[kind](old)
    parameters = dict(old.named_parameters(recurse=False, remove_duplicate=False))
    # Old-style weight norm and pruning put other parameters in the place of the layer's own.
    if is_parametrized(old) or parameters.keys() != dict(new.named_parameters()).keys():
        raise UsageError(
            f"replace_torch_layers: a torch.nn.{kind.__name__} has parametrised weights; remove the parametrisation "
            "first (torch.nn.utils.parametrize.remove_parametrizations, torch.nn.utils.remove_weight_norm, "
            "torch.nn.utils.prune.remove)"
        )
    for name, parameter in parameters.items():
        setattr(new, name, parameter)
    # The very tables of hooks, so that the handles given out for them go on working.
    vars(new).update({name: value for name, value in vars(old).items() if "hook" in name})
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
