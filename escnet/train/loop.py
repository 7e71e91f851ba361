"""The training loop: any task, any number of processes, killed and resumed at any step.

Several processes (torchrun), devices and mixed precision are Hugging Face accelerate's work. The
samples of a step follow from its number, so the state is the weights, the optimiser and that number
alone, and a resumed run ends with the weights of one that was never interrupted.

A run's folder::

    last.safetensors    the newest weights, for use
    best.safetensors    those with the best score in validation
    state.pt            to resume from: tensors and numbers, read without unpickling programs
    metrics.jsonl       a line for every `log_every` steps and every validation
    tensorboard/        the same as curves
"""

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import AdamW
from torch.utils.data import DataLoader

from escnet_runtime.atomic import atomic_file
from escnet_runtime.console import Console
from escnet_runtime.errors import EscNetError, InputError

from .metrics import MetricsLog
from .settings import LoopSettings
from .task import Task

__all__ = ["Outcome", "Stopped", "train"]

_LOG = logging.getLogger(__name__)
STATE: Final = "state.pt"
LAST: Final = "last.safetensors"
BEST: Final = "best.safetensors"


class Stopped(EscNetError):
    """The run was asked to stop; its state was saved, and it can be resumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended: its last validation, the best score and the step of that, its seconds."""

    figures: Mapping[str, float]
    best: float | None
    best_step: int | None
    seconds: float


def train(
    task: Task,
    settings: LoopSettings,
    folder: Path,
    *,
    resume: bool = False,
    console: Console | None = None,
) -> Outcome:
    """Train, validate and save; see the module's docstring for what ``folder`` then holds.

    Args:
        task: what is trained, changed in place.
        settings: how long and how fast.
        folder: of this run; made if it is missing.
        resume: go on from the state in ``folder``. Without a state there it starts anew.
        console: shows progress.

    Raises:
        InputError: ``folder`` holds a run and ``resume`` is False, or another run's state.
        Stopped: SIGTERM or Ctrl-C came; the state was saved.
        EscNetError: the loss is not finite.
    """
    return _Run(task, settings, folder, console or Console(quiet=True)).run(resume)


class _Run:
    def __init__(
        self, task: Task, settings: LoopSettings, folder: Path, console: Console
    ) -> None:
        self.task, self.settings, self.folder, self.console = task, settings, folder, console
        self.accelerator = Accelerator(
            mixed_precision=settings.precision,
            gradient_accumulation_steps=settings.accumulate,
        )
        self._freeze()
        optimizer = AdamW(
            [
                {
                    "params": list(group.parameters.values()),
                    "lr": group.rate,
                    "weight_decay": group.weight_decay,
                }
                for group in task.groups
            ]
        )
        self.module, self.optimizer = self.accelerator.prepare(task.module, optimizer)
        self.step, self.best, self.best_step, self.seconds = 0, None, None, 0.0
        self.best: float | None
        self.best_step: int | None

    def run(self, resume: bool) -> Outcome:
        """See :func:`train`."""
        self._open(resume)
        settings, start = self.settings, time.perf_counter()
        figures: Mapping[str, float] = {}
        with (
            MetricsLog(self.folder, self.step, active=self.main) as metrics,
            self.console.progress(self.task.name, settings.steps) as advance,
            _stop_requests() as asked_to_stop,
        ):
            advance(count=self.step)
            batches = iter(self._loader())
            before, self.seconds_before = start, self.seconds
            while self.step < settings.steps:
                losses = self._optimise(batches)
                self.step += 1
                self.seconds = self.seconds_before + time.perf_counter() - start
                if self.step % settings.log_every == 0 or self.step == settings.steps:
                    now = time.perf_counter()
                    values = {name: value.item() for name, value in losses.items()}
                    metrics.write(self.step, self.seconds, {**values, "rate": self._rate()})
                    advance(f"loss {values['loss']:.3f}", count=0)
                    before = now
                if self._due(settings.evaluate_every):
                    figures = self._validate(metrics)
                advance()
                stop = self._anywhere(asked_to_stop())
                if stop or self._due(settings.save_every):
                    self._save()
                if stop and self.step < settings.steps:
                    raise Stopped(
                        f"stopped after step {self.step} of {settings.steps}; the state is saved "
                        f"in {self.folder}: resume it with --resume"
                    )
        return Outcome(
            figures=figures, best=self.best, best_step=self.best_step, seconds=self.seconds
        )

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes files."""
        return bool(self.accelerator.is_main_process)

    def _freeze(self) -> None:
        self.task.module.requires_grad_(False)
        for group in self.task.groups:
            for parameter in group.parameters.values():
                parameter.requires_grad_(True)

    def _due(self, every: int) -> bool:
        last = self.step == self.settings.steps
        return last or (every > 0 and self.step % every == 0)

    def _rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def _loader(self) -> DataLoader[Any]:
        workers = self.settings.workers
        return DataLoader(
            self.task.samples,  # type: ignore[arg-type]  # a protocol of ours, all it needs
            batch_sampler=_Batches(
                self.settings,
                first=self.step,
                process=self.accelerator.process_index,
                processes=self.accelerator.num_processes,
            ),
            collate_fn=self.task.collate,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
        )

    def _optimise(self, batches: Iterator[Any]) -> dict[str, Tensor]:
        """One step; the losses are means over its forward passes in this process."""
        factor = self.settings.rate_factor(self.step)
        for options, group in zip(
            self.optimizer.param_groups, self.task.groups, strict=True
        ):
            options["lr"] = group.rate * factor
        total: dict[str, Tensor] = {}
        for _ in range(self.settings.accumulate):
            batch = _moved(next(batches), self.accelerator.device)
            with self.accelerator.accumulate(self.module):
                losses = self.module(batch)
                self.accelerator.backward(losses["loss"])
                if self.accelerator.sync_gradients and self.settings.clip_norm:
                    self.accelerator.clip_grad_norm_(
                        self.module.parameters(), self.settings.clip_norm
                    )
                self.optimizer.step()
                self.optimizer.zero_grad()
            for name, value in losses.items():
                total[name] = total.get(name, 0.0) + value.detach() / self.settings.accumulate
        if not torch.isfinite(total["loss"]):
            raise EscNetError(
                f"the loss of step {self.step + 1} is {total['loss'].item()}; lower the learning "
                f"rate or raise warmup, and resume from the last state in {self.folder}"
            )
        return total

    def _validate(self, metrics: MetricsLog) -> Mapping[str, float]:
        figures: Mapping[str, float] = {}
        if self.main:
            self.task.module.eval()
            with torch.no_grad():
                figures = self.task.validate()
            self.task.module.train()
            metrics.write(self.step, self.seconds, figures)
            score = None if self.task.score is None else figures[self.task.score]
            if score is not None and (self.best is None or score > self.best):
                self.best, self.best_step = score, self.step
                self.task.save(self.folder / BEST, step=self.step)
        self.accelerator.wait_for_everyone()
        return figures

    def _anywhere(self, flag: bool) -> bool:
        """Whether any process says so."""
        if self.accelerator.num_processes == 1:
            return flag
        mine = torch.tensor([int(flag)], device=self.accelerator.device)
        return bool(self.accelerator.gather(mine).sum())

    def _open(self, resume: bool) -> None:
        state = self.folder / STATE
        if state.is_file():
            if not resume:
                raise InputError(
                    f"{self.folder} holds a run already: resume it with --resume, or name another "
                    "folder"
                )
            self._load(state)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.task.module.train()

    def _save(self) -> None:
        if self.main:
            self.task.save(self.folder / LAST, step=self.step)
            scaler = self.accelerator.scaler
            content = {
                "task": self.task.name,
                "step": self.step,
                "best": self.best,
                "best_step": self.best_step,
                "seconds": self.seconds,
                "model": self.task.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
            }
            with atomic_file(self.folder / STATE) as temporary:
                torch.save(content, temporary)
        self.accelerator.wait_for_everyone()

    def _load(self, path: Path) -> None:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            if content["task"] != self.task.name:
                raise InputError(
                    f"{path} is the state of a run of {content['task']!r}, this is "
                    f"{self.task.name!r}"
                )
            self.task.module.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
            if self.accelerator.scaler is not None and content["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(content["scaler"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(
                f"{path} does not fit this run, or is damaged: {error}. Resume with the "
                "configuration it was started with"
            ) from error
        self.step = content["step"]
        self.best, self.best_step = content["best"], content["best_step"]
        self.seconds = content["seconds"]


class _Batches:
    """Numbers of the samples of each forward pass of one process, from a step on."""

    def __init__(
        self, settings: LoopSettings, *, first: int, process: int, processes: int
    ) -> None:
        self.settings, self.first = settings, first
        self.process, self.processes = process, processes

    def __len__(self) -> int:
        return (self.settings.steps - self.first) * self.settings.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        batch, accumulate = self.settings.batch, self.settings.accumulate
        for number in range(self.first * accumulate, self.settings.steps * accumulate):
            start = (number * self.processes + self.process) * batch
            yield list(range(start, start + batch))


def _moved(batch: Any, device: torch.device) -> Any:
    """The tensors of a batch on a device."""
    match batch:
        case Tensor():
            return batch.to(device, non_blocking=True)
        case Mapping():
            return {key: _moved(value, device) for key, value in batch.items()}
        case list() | tuple():
            return type(batch)(_moved(value, device) for value in batch)
    return batch


@contextlib.contextmanager
def _stop_requests() -> Iterator[Any]:
    """Within, SIGTERM and Ctrl-C only set a flag, once; gives a function that reads it."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag.is_set  # Python sets signal handlers in the main thread alone
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, frame: FrameType | None) -> None:
        flag.set()
        signal.signal(number, before[number])  # a second one has its usual effect
        _LOG.warning("%s: saving before it stops", signal.Signals(number).name)

    for number in before:
        signal.signal(number, note)
    try:
        yield flag.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
