"""The optimizer with the parameter groups of language modelling, and its state as flat named tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from throughtime.errors import ConfigError
from throughtime.training.config import TrainingConfig

# Devices on which PyTorch has the update of all parameters as one kernel.
_FUSED_DEVICES = frozenset({"cpu", "cuda"})


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """The model's parameters as two groups: those that decay, and those that do not.

    Vectors (biases, the scales of norms) and every parameter of an `nn.Embedding` do not decay; a readout tied to
    an embedding is that embedding. The order within a group is that of `model.parameters()`.
    """
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        for parameter in module.parameters(recurse=False)
    }
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (kept if parameter.ndim < 2 or id(parameter) in embeddings else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW or plain gradient descent over the model's parameters, as one fused update where the device has it.

    Source of AdamW: Loshchilov & Hutter 2019, "Decoupled weight decay regularization".
    """
    groups = parameter_groups(model, config.weight_decay)
    fused = all(p.device.type in _FUSED_DEVICES and p.is_floating_point() for p in model.parameters())
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, fused=fused)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=fused)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as "number of the parameter.name" → tensor; hyperparameters are the configuration's."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": value for index, entry in state.items() for key, value in entry.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave; learning rate, decay and betas stay those of the configuration.

    Raises:
        ConfigError: the tensors are those of other parameters.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, entry in state.items():
        expected = tuple(parameters[number].shape) if number < len(parameters) else None
        if expected is None or any(value.ndim and tuple(value.shape) != expected for value in entry.values()):
            raise ConfigError(
                f"optimizer: the checkpoint's state of parameter {number} does not fit this model; "
                "resume with the [model] section that the run was started with"
            )
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
