"""The processes of a run, their devices and their mixed precision: Hugging Face accelerate's work.

Several processes are started by torchrun; each calls the same code and learns here which it is.
"""

import contextlib
import logging
import platform
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Final

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import GradientAccumulationPlugin, broadcast_object_list
from torch import Tensor, nn

from escnet_runtime.errors import EscNetError, InputError

from .settings import LoopSettings

__all__ = ["Forward", "accelerator_of", "bf16_is_slow", "largest", "mean_of", "on_main"]

_LOG = logging.getLogger(__name__)

#: One process validates while the others wait; torch gives up after 10 or 30 minutes otherwise.
_PATIENCE: Final = timedelta(hours=6)


class Forward(nn.Module):
    """What accelerate prepares in place of a task's module, whose ``forward`` it would replace."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Any) -> Mapping[str, Tensor]:
        """The losses of a batch."""
        losses: Mapping[str, Tensor] = self.module(batch)
        return losses


def bf16_is_slow() -> bool:
    """Whether a run would be on an x86 CPU without AVX-512.

    torch computes bf16 there by way of float32: the forward pass of ``tiny`` takes five times as
    long as in float32, the backward pass ten times (AMD Zen 3).
    """
    return (
        not torch.accelerator.is_available()
        and platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
    )


@contextlib.contextmanager
def accelerator_of(settings: LoopSettings) -> Iterator[Accelerator]:
    """An Accelerator for one run.

    Within, accelerate's settings, which it keeps one of a process and refuses to change, are those
    of this run; afterwards they are what they were. The process group, which can be made only once,
    stays. On a CPU, numbers below 1.2e-38 are zeros within.

    Raises:
        InputError: this machine has no such precision.
    """
    with contextlib.ExitStack() as stack:
        for shared in (AcceleratorState, GradientState):
            stack.enter_context(_emptied(shared._shared_state))
        cpu = not torch.accelerator.is_available()
        if cpu and settings.precision == "fp16":
            raise InputError(
                "precision is fp16, which needs a GPU, and there is none: use bf16 or no"
            )
        if settings.precision == "bf16" and bf16_is_slow():
            _LOG.warning(
                "precision is bf16, which this processor has no instructions for: 'no' (float32) "
                "trains several times faster here"
            )
        try:
            accelerator = Accelerator(
                cpu=cpu,  # with torchrun, accelerate asks the CPU's backend only if told so
                mixed_precision=settings.precision,
                # A plain number would give way to ACCELERATE_GRADIENT_ACCUMULATION_STEPS.
                gradient_accumulation_plugin=GradientAccumulationPlugin(
                    num_steps=settings.accumulate
                ),
                kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
            )
        except ValueError as error:
            raise InputError(f"precision {settings.precision}: {error}") from error
        if cpu:
            stack.enter_context(_flushed_denormals())
        yield accelerator
        accelerator.free_memory()


@contextlib.contextmanager
def _flushed_denormals() -> Iterator[None]:
    """No denormal numbers in this thread, nor in those that it starts.

    Softmax at the prompt generator's temperature and its gradients are full of them, and an Intel
    CPU takes some hundred cycles for each: a step of ``tiny`` is a fifth faster without.
    """
    if not _has_denormals():
        yield
        return
    for kind in (np.float32, np.float64):  # 1.26 warns if it first looks without denormals
        np.finfo(kind)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _has_denormals() -> bool:
    """Torch sets the mode and does not tell it."""
    return bool(torch.tensor([1e-39]).mul(0.5) != 0)


@contextlib.contextmanager
def _emptied(shared: dict[str, Any]) -> Iterator[None]:
    before = dict(shared)
    shared.clear()
    try:
        yield
    finally:
        shared.clear()
        shared.update(before)


def on_main(accelerator: Accelerator, action: Callable[[], None]) -> None:
    """Do something in the main process alone; the others wait, and share its EscNetError."""
    error: EscNetError | None = None
    if accelerator.is_main_process:
        try:
            action()
        except EscNetError as raised:
            error = raised
    if accelerator.num_processes > 1:
        shared = [None if error is None else (type(error), str(error))]
        (found,) = broadcast_object_list(shared)
        if error is None and found is not None:
            kind, message = found
            error = kind(message)
    if error is not None:
        raise error


def largest(accelerator: Accelerator, number: int) -> int:
    """The largest of all processes' numbers."""
    if accelerator.num_processes == 1:
        return number
    mine = torch.tensor([number], device=accelerator.device)
    return int(accelerator.gather(mine).max())


def mean_of(accelerator: Accelerator, values: Mapping[str, Tensor]) -> dict[str, float]:
    """Means over all processes of scalars, which have the same names everywhere."""
    together = torch.stack([value.detach().float() for value in values.values()])
    if accelerator.num_processes > 1:
        together = accelerator.reduce(together, "mean")
    return dict(zip(values, together.tolist(), strict=True))
