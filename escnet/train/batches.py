"""Batches of a run: which samples each forward pass of each process gets, and reading them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from escnet_runtime.errors import EscNetError

from .settings import LoopSettings
from .stop import ignore_stop_requests
from .task import Samples, Task

__all__ = ["batches_of", "moved"]


def batches_of(
    task: Task,
    settings: LoopSettings,
    *,
    first: int,
    steps: int,
    process: int,
    processes: int,
    device: torch.device,
) -> Iterator[Any]:
    """The batches of one process, on its device.

    Step after step takes the next samples: for each of its forward passes ``batch`` for the first
    process, ``batch`` for the second, and so on. So one process with twice the batch sees in a step
    what two see.

    Args:
        task: gives samples and collates them.
        settings: how many samples.
        first: number of the first sample.
        steps: optimiser steps to make batches for.
        process: number of this process, from 0.
        processes: how many there are.
        device: where the batches go.

    Raises:
        EscNetError: what reading a sample raised, as it raised it.
    """
    workers = settings.workers
    numbers = _Numbers(
        first=first + process * settings.batch,
        stride=processes * settings.batch,
        batch=settings.batch,
        count=steps * settings.accumulate,
    )
    loader: DataLoader[Any] = DataLoader(
        _Guarded(task.samples),  # type: ignore[arg-type]  # a list without a length, all it needs
        batch_sampler=numbers,
        collate_fn=_GuardedCollate(task.collate),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=ignore_stop_requests if workers else None,
        # Seeds workers that draw random numbers; ours draw none, and the caller's stay untouched.
        generator=torch.Generator(),
        pin_memory=device.type == "cuda",
    )
    for batch in loader:
        if isinstance(batch, _Failure):
            raise batch.error
        yield moved(batch, device)


def moved(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on a device; dictionaries, lists and tuples are looked through."""
    match batch:
        case Tensor():
            return batch.to(device, non_blocking=True)
        case Mapping():
            return {key: moved(value, device) for key, value in batch.items()}
        case list() | tuple():
            return type(batch)(moved(value, device) for value in batch)
    return batch


@dataclass(frozen=True, slots=True, kw_only=True)
class _Numbers:
    """Numbers of the samples of each forward pass of one process."""

    first: int
    stride: int
    batch: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        for index in range(self.count):
            start = self.first + index * self.stride
            yield list(range(start, start + self.batch))


@dataclass(frozen=True, slots=True)
class _Failure:
    """In place of a sample or a batch: errors of ours travel between processes as they are."""

    error: EscNetError


class _Guarded:
    """Samples; DataLoader would wrap a worker's error in another one with a traceback in it."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __getitem__(self, index: int) -> Any:
        try:
            return self._samples[index]
        except EscNetError as error:
            return _Failure(error)


class _GuardedCollate:
    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self._collate = collate

    def __call__(self, samples: list[Any]) -> Any:
        failures = (sample for sample in samples if isinstance(sample, _Failure))
        return next(failures, None) or self._collate(samples)
