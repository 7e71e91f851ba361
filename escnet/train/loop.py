"""The training loop: any task, any number of processes, killed and resumed at any moment.

The samples of a step follow from their numbers, so the state is the weights, the optimiser and a
few numbers, and a resumed run ends with the weights of one that was never interrupted: bit for bit
on the CPU; on a GPU, some of whose sums have no fixed order, as nearly as two runs agree there.

What a run's folder holds is told in :mod:`escnet.train.folder`.
"""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import Accelerator
from torch import Tensor

from escnet_runtime.console import Advance, Console
from escnet_runtime.errors import EscNetError

from .batches import batches_of
from .fingerprint import DataFingerprint
from .folder import BEST, LAST, Progress, RunFolder
from .listing import parameter_list
from .metrics import MetricsLog
from .optimiser import optimiser_of, ordered
from .processes import Forward, accelerator_of, largest, mean_of, on_main
from .settings import LoopSettings
from .state import RunState
from .stop import Stopped, StopRequest, stop_requests
from .task import Task

__all__ = ["BEST", "LAST", "Outcome", "Stopped", "train"]

#: fp16 steps in a row whose gradients overflow before it is called an error. The scaler halves its
#: scale each time, from 2**16 at first, so it is far below 1 by then.
_MOST_SKIPPED: Final = 50


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
    config: str | None = None,
    data: Mapping[str, DataFingerprint] | None = None,
    console: Console | None = None,
) -> Outcome:
    """Train, validate and save.

    Args:
        task: what is trained, changed in place.
        settings: how long and how fast.
        folder: of this run; made if it is missing.
        resume: go on from the state in ``folder``. Without a state there it starts anew.
        config: text of the configuration that these settings are part of; kept in the state, and
            in the folder of a run that starts anew.
        data: fingerprints of the task's data sets, under the names that messages call them; a
            resumed run must have the same as when it was started.
        console: shows progress.

    Raises:
        InputError: ``folder`` holds a run and ``resume`` is False, or another run's state, or one
            with other data; or another process trains there.
        Stopped: SIGTERM or Ctrl-C came; the state was saved.
        EscNetError: the loss is not finite, or the state cannot be written; the last state that was
            saved is unharmed.
    """
    with accelerator_of(settings) as accelerator, contextlib.ExitStack() as stack:
        console = console or Console(quiet=True)
        run = _Run(task, settings, RunFolder(folder), accelerator, config, data or {}, console)
        on_main(accelerator, lambda: stack.enter_context(run.folder.locked()))
        return run.run(resume)


class _CutOffError(Exception):
    """Ends a validation when the run is asked to stop."""


class _Run:
    def __init__(
        self,
        task: Task,
        settings: LoopSettings,
        folder: RunFolder,
        accelerator: Accelerator,
        config: str | None,
        data: Mapping[str, DataFingerprint],
        console: Console,
    ) -> None:
        self.task, self.settings, self.folder = task, settings, folder
        self.accelerator, self.config, self.console = accelerator, config, console
        self.data = data
        self.main = bool(accelerator.is_main_process)
        self.progress, self.skipped = Progress(), 0
        self.asked = 0  # number of the signal that asks to stop, the same in all processes; 0: none
        self.cut = False  # whether that ended a validation before it was done
        self._freeze()
        self.groups = ordered(task.groups)
        self.module, self.optimizer = accelerator.prepare(
            Forward(task.module), optimiser_of(self.groups)
        )

    def run(self, resume: bool) -> Outcome:
        """See :func:`train`."""
        self._open(resume)
        self.task.module.train()
        steps, progress = self.settings.steps, self.progress
        with (
            MetricsLog(self.folder, progress, active=self.main) as metrics,
            self.console.progress(self.task.name, steps) as advance,
            stop_requests() as request,
        ):
            advance(count=progress.step)
            # A run may be killed between saving and validating, or stopped while it validates.
            self._validate_if_due(metrics, request)
            batches = self._batches()
            while progress.step < steps:
                self._step(batches, metrics, advance)
                self.asked = largest(self.accelerator, request.number)
                due = self._due(self.settings.save_every) or self._due(self.settings.evaluate_every)
                if self.asked or due:
                    self._save(metrics)
                if self.asked and progress.step < steps:
                    raise self._stopped()
                self._validate_if_due(metrics, request)
        return Outcome(
            figures=progress.figures,
            best=progress.best,
            best_step=progress.best_step,
            seconds=progress.seconds,
        )

    def _freeze(self) -> None:
        self.task.module.requires_grad_(False)
        for group in self.task.groups:
            for parameter in group.parameters.values():
                parameter.requires_grad_(True)

    def _due(self, every: int) -> bool:
        step = self.progress.step
        return step == self.settings.steps or (every > 0 and step % every == 0)

    def _stopped(self, where: str = "") -> Stopped:
        step = self.progress.step
        return Stopped(
            f"stopped after step {step} of {self.settings.steps}{where}; the state is saved in "
            f"{self.folder.path}: resume it with --resume",
            number=self.asked,
            step=step,
        )

    def _batches(self) -> Iterator[Any]:
        return batches_of(
            self.task,
            self.settings,
            first=self.progress.samples,
            steps=self.settings.steps - self.progress.step,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
            device=self.accelerator.device,
        )

    def _step(self, batches: Iterator[Any], metrics: MetricsLog, advance: Advance) -> None:
        """One step, and its line of metrics where one is due."""
        settings, progress, start = self.settings, self.progress, time.perf_counter()
        losses = self._optimise(batches)
        progress.step += 1
        progress.samples += settings.batch * settings.accumulate * self.accelerator.num_processes
        if self._due(settings.log_every):
            values = mean_of(self.accelerator, losses)
            advance(f"loss {values['loss']:.3f}", count=0)
        progress.seconds += time.perf_counter() - start
        if self._due(settings.log_every):
            rate = self.optimizer.param_groups[0]["lr"]
            figures = {**values, "rate": rate, **_memory(self.accelerator.device)}
            metrics.write(progress.step, progress.seconds, figures)
        advance()

    def _optimise(self, batches: Iterator[Any]) -> dict[str, Tensor]:
        """One step; the losses are means over its forward passes in this process."""
        factor = self.settings.rate_factor(self.progress.step)
        for options, group in zip(self.optimizer.param_groups, self.groups, strict=True):
            options["lr"] = group.rate * factor
        total: dict[str, Tensor] = {}
        for _ in range(self.settings.accumulate):
            batch = next(batches)
            with self.accelerator.accumulate(self.module):
                losses = self.module(batch)
                self.accelerator.backward(losses["loss"])
                for name, value in losses.items():
                    share = value.detach() / self.settings.accumulate
                    total[name] = total[name] + share if name in total else share
                if self.accelerator.sync_gradients:
                    total["gradient_norm"] = self._clip()
                self.optimizer.step()
                self.optimizer.zero_grad()
        self._count_overflows()
        return total

    def _clip(self) -> Tensor:
        """Cut the gradients, summed over processes by now; gives their Euclidean norm before."""
        limit = self.settings.clip_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), limit)
        # With a scaler (fp16), an overflow is part of finding the scale: it skips the step.
        if self.accelerator.scaler is None and not torch.isfinite(norm):
            raise EscNetError(
                f"the gradient of step {self.progress.step + 1} is not finite (norm "
                f"{norm.item()}); lower the learning rate or raise warmup, and resume from the "
                f"last state in {self.folder.path}"
            )
        found: Tensor = norm
        return found

    def _count_overflows(self) -> None:
        skipped = self.accelerator.scaler is not None and self.optimizer.step_was_skipped
        self.skipped = self.skipped + 1 if skipped else 0
        if self.skipped >= _MOST_SKIPPED:
            raise EscNetError(
                f"the gradients of {self.skipped} steps in a row are not finite in fp16; use bf16, "
                "or lower the learning rate"
            )

    def _validate_if_due(self, metrics: MetricsLog, request: StopRequest) -> None:
        """The state of this step is on the disk, so a validation that is cut off loses nothing."""
        progress = self.progress
        if not progress.step or progress.evaluated == progress.step:
            return
        if not self._due(self.settings.evaluate_every):
            return
        on_main(self.accelerator, lambda: self._validate(metrics, request))
        self.asked = largest(self.accelerator, self.asked or request.number)
        if largest(self.accelerator, int(self.cut)):
            raise self._stopped(", before its validation was finished")
        progress.evaluated = progress.step
        self._save(metrics)
        # Asked to stop after all is done, the last step's validation too, the run is finished.
        if self.asked and progress.step < self.settings.steps:
            raise self._stopped()

    def _validate(self, metrics: MetricsLog, request: StopRequest) -> None:
        def check() -> None:
            if self.asked or request.number:
                raise _CutOffError

        progress, score = self.progress, self.task.score
        self.task.module.eval()
        try:
            with torch.no_grad():
                progress.figures = dict(self.task.validate(check))
        except _CutOffError:
            self.cut = True
            return
        finally:
            self.task.module.train()
        if progress.figures:
            metrics.write(progress.step, progress.seconds, progress.figures)
        if score is None:
            return
        figure = progress.figures[score]
        if progress.best is None or figure > progress.best:
            progress.best, progress.best_step = figure, progress.step
            with self.folder.writing(self.folder.best):
                self.task.save(self.folder.best, step=progress.step)

    def _save(self, metrics: MetricsLog) -> None:
        on_main(self.accelerator, lambda: self._write(metrics))

    def _write(self, metrics: MetricsLog) -> None:
        with self.folder.writing(self.folder.last):
            self.task.save(self.folder.last, step=self.progress.step)
        self.progress.metrics = metrics.size
        self._state().save(self.progress)

    def _state(self) -> RunState:
        return RunState(
            folder=self.folder,
            task=self.task,
            optimizer=self.optimizer,
            accelerator=self.accelerator,
            data=self.data,
            config=self.config,
        )

    def _note(self) -> None:
        """What is trained, and how: written by a run that starts anew, or where it is not there."""
        anew, folder = not self.folder.state.is_file(), self.folder
        if anew or not folder.groups.is_file():
            folder.write_text(folder.groups, parameter_list(self.task.module, self.task.groups))
        if anew and self.config is not None:
            folder.write_text(folder.config, self.config)

    def _open(self, resume: bool) -> None:
        self.folder.require_free(resume=resume)
        if self.folder.state.is_file():
            self.progress = self._state().restore(self.settings.steps)
        on_main(self.accelerator, self._note)


def _memory(device: torch.device) -> dict[str, float]:
    """The most that this process's tensors have held of a GPU so far."""
    if device.type != "cuda":
        return {}
    return {"peak_memory_bytes": float(torch.cuda.max_memory_allocated(device))}
