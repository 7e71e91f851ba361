"""What a run resumes from: weights, optimiser and a few numbers, and whether they fit the run."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from escnet_runtime.errors import InputError

from .fingerprint import DataFingerprint, differences
from .folder import Progress, RunFolder
from .task import Task

__all__ = ["RunState"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """All that a run changes while it trains.

    Attributes:
        folder: where it is kept.
        task: has the weights.
        optimizer: as accelerate prepared it.
        accelerator: has the scaler of fp16, and the number of processes.
        data: see :func:`escnet.train.loop.train`.
        config: see there.
    """

    folder: RunFolder
    task: Task
    optimizer: Any
    accelerator: Accelerator
    data: Mapping[str, DataFingerprint]
    config: str | None

    def save(self, progress: Progress) -> None:
        """Write it; raises what :meth:`RunFolder.save` raises."""
        scaler = self.accelerator.scaler
        tensors = {
            "model": self.task.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "processes": self.accelerator.num_processes,
            "data": {key: one.plain() for key, one in self.data.items()},
            "config": self.config,
        }
        self.folder.save(self.task.name, progress, tensors)

    def restore(self, steps: int) -> Progress:
        """Read it into task and optimiser; gives how far the run is.

        Raises:
            InputError: it is damaged, or another run's: another task, other shapes, other data, or
                more than ``steps`` steps.
        """
        progress, tensors = self.folder.load(self.task.name)
        if progress.step > steps:
            raise InputError(
                f"{self.folder.state} is of step {progress.step}; this run ends at {steps}"
            )
        self._require_same_data(tensors.get("data"))
        try:
            self.task.module.load_state_dict(tensors["model"])
            self.optimizer.load_state_dict(tensors["optimizer"])
            if self.accelerator.scaler is not None and tensors["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(tensors["scaler"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(
                f"{self.folder.state} does not fit this run: {error}. Resume with the "
                "configuration it was started with"
            ) from error
        before, now = tensors["processes"], self.accelerator.num_processes
        if before != now:
            _LOG.warning(
                "saved by %d processes and resumed by %d: a step has other samples now", before, now
            )
        return progress

    def _require_same_data(self, before: Mapping[str, Mapping[str, Any]] | None) -> None:
        if self.data and not before:
            _LOG.info("%s does not say with which data it was trained", self.folder.state)
        changed = differences(before or {}, self.data)
        if changed:
            raise InputError(
                f"the data is not what the run in {self.folder.path} was started with: "
                f"{'; '.join(changed)}. Make it again what it was, and resume. To train on with "
                "this data, start a new run from last.safetensors (model.checkpoint)"
            )
