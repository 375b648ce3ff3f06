"""Devices, precision and processes through Accelerate: one process by itself, or one of many under torchrun.

Numbers that steer the loop travel between processes over gloo, on the CPU, so that agreeing on them never waits
for an accelerator; gradients travel over what the device has (NCCL, gloo).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import nn

from throughtime.errors import ConfigError, FailureError, ThroughtimeError
from throughtime.training.config import TrainingConfig
from throughtime.training.random_state import seed_everything

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped]


# The others wait for as long as the main process prepares a large text; torchrun ends them when it dies.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Distribution:
    """One process among its fellows: its rank, its device, and what they do together."""

    accelerator: Accelerator
    rank: int
    world_size: int
    device: torch.device
    precision: str
    control: dist.ProcessGroup | None

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder and talks to the user."""
        return self.rank == 0

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model on its device, in its precision and, with several processes, averaging gradients."""
        return cast(nn.Module, self.accelerator.prepare_model(model))

    def release(self, model: nn.Module) -> None:
        """Undo what `prepare` did to `model`, but for the device."""
        self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        self.accelerator.free_memory()

    def close(self) -> None:
        """Leave the other processes; nothing can be summed or gathered afterwards."""
        self.accelerator.end_training()

    def place(self, batch: Any) -> Any:
        """`batch` with its tensors on this process's device."""
        if self.device.type == "cpu":
            return batch
        from accelerate.utils import send_to_device  # type: ignore[import-untyped]

        return send_to_device(batch, self.device, non_blocking=True)

    def without_averaging(self, model: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """A block whose backward passes leave gradients on this process: all but the last of a step."""
        return self.accelerator.no_sync(model) if self.world_size > 1 else contextlib.nullcontext()

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each of `values` summed over the processes, in float64."""
        if self.control is None:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.control)
        return cast("list[float]", total.tolist())

    def gather(self, data: bytes) -> list[bytes] | None:
        """Every process's `data` in rank order, at the main process; None elsewhere."""
        if self.control is None:
            return [data]
        own = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        sizes = [int(size) for size in self.sum([len(data) * (rank == self.rank) for rank in range(self.world_size)])]
        padded = torch.zeros(max(sizes), dtype=torch.uint8)  # (largest,), as gather takes equal sizes
        padded[: len(data)] = own
        parts = [torch.empty_like(padded) for _ in sizes] if self.is_main else None
        dist.gather(padded, parts, dst=0, group=self.control)
        if parts is None:
            return None
        return [part[:size].numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]

    def on_main(self, action: Callable[[], None]) -> None:
        """Run `action` at the main process while the others wait; its failure ends them all.

        Raises:
            ThroughtimeError: what `action` raised, at the main process.
            FailureError: at the others, when it failed there; with the same exit code.
        """
        failure: ThroughtimeError | None = None
        if self.is_main:
            try:
                action()
            except ThroughtimeError as error:
                failure = error
        (exit_code,) = self.sum([0.0 if failure is None else failure.exit_code])
        if failure is not None:
            raise failure
        if exit_code:
            elsewhere = FailureError(f"process {self.rank}: process 0 failed; see its message")
            elsewhere.exit_code = int(exit_code)
            raise elsewhere


def start(config: TrainingConfig) -> Distribution:
    """Join the other processes where torchrun started several, choose device and precision, seed every generator.

    Call it before the model is made, so that its weights come from `config.seed`, the same on every process.

    Raises:
        ConfigError: a CUDA device is asked for and torch sees none.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState  # type: ignore[import-untyped]
    from accelerate.utils import InitProcessGroupKwargs

    on_cpu = _use_cpu(config.device)
    # Accelerate keeps one state per interpreter; a second run in it may have another device or precision.
    AcceleratorState._reset_state(reset_partial_state=not dist.is_initialized())
    # Without a backend named, Accelerate takes the device's.
    patience = InitProcessGroupKwargs(backend=None, timeout=_PATIENCE)
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=[patience])
    precision = _precision(config.precision, accelerator.device)
    if precision == "bf16":
        AcceleratorState._reset_state()
        accelerator = Accelerator(cpu=on_cpu, mixed_precision="bf16")
    seed_everything(config.seed)
    return Distribution(
        accelerator=accelerator,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        device=accelerator.device,
        precision=precision,
        control=dist.new_group(backend="gloo", timeout=_PATIENCE) if accelerator.num_processes > 1 else None,
    )


def _use_cpu(device: str) -> bool:
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("training.device: cuda is asked for, but torch sees no CUDA device; use auto or cpu")
    # Only what is tested: others lack float64 (MPS), or their random generators are not in the checkpoints.
    return device == "cpu" or not torch.cuda.is_available()


def _precision(precision: str, device: torch.device) -> str:
    if precision != "auto":
        return precision
    if device.type == "cpu":
        in_hardware = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        in_hardware = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if in_hardware else "fp32"
