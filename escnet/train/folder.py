"""The folder of a run: what is in it, its lock, and the state that it resumes from.

::

    last.safetensors    the newest weights, for use
    best.safetensors    those with the best score in validation
    state.pt            to resume from: tensors and numbers, read without unpickling programs
    config.toml         of escnet-train: the whole configuration, defaults included
    groups.tsv          every parameter: its group, rate, weight decay and shape
    metrics.jsonl       a line for every `log_every` steps and every validation
    tensorboard/        the same as curves
    run.lock            held while a process trains here; the file stays, the lock does not
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError

from escnet_runtime.atomic import atomic_file
from escnet_runtime.errors import EscNetError, InputError
from escnet_runtime.locks import exclusive

__all__ = ["BEST", "LAST", "Progress", "RunFolder"]

LAST: Final = "last.safetensors"
BEST: Final = "best.safetensors"
_FORMAT: Final = 1


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a run is: all of its state but tensors.

    Attributes:
        step: optimiser steps done.
        samples: samples shown, of all processes.
        evaluated: the last step that was validated; 0: none.
        figures: of that validation.
        best: best score so far, None before the first.
        best_step: the step of ``best``.
        seconds: trained so far.
        metrics: bytes of the record of metrics that belong to this state.
    """

    step: int = 0
    samples: int = 0
    evaluated: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    best: float | None = None
    best_step: int | None = None
    seconds: float = 0.0
    metrics: int = 0


class RunFolder:
    """Paths in a run's folder; see the module's docstring."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state, self.last, self.best = (path / name for name in ("state.pt", LAST, BEST))
        self.config, self.groups = path / "config.toml", path / "groups.tsv"
        self.metrics, self.curves = path / "metrics.jsonl", path / "tensorboard"
        self.lock = path / "run.lock"

    def require_free(self, *, resume: bool) -> None:
        """Raise InputError if there is a run here that is not to be resumed."""
        if self.state.is_file() and not resume:
            raise InputError(
                f"{self.path} holds a run already: resume it with --resume, or name another folder"
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Within, no other process can train here. The folder is made if it is missing.

        Raises:
            InputError: another process trains here, or the place is not writable.
        """
        with contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self.lock.touch()
                stack.enter_context(exclusive(self.lock))
            except BlockingIOError:
                raise InputError(
                    f"another process is training in {self.path}: wait for it, or name another "
                    "folder"
                ) from None
            except OSError as error:
                raise InputError(f"cannot train in {self.path}: {error.strerror}") from error
            yield

    def save(self, task: str, progress: Progress, tensors: Mapping[str, Any]) -> None:
        """Write the state, whole or not at all; what is there stays if that fails.

        Args:
            task: name of what is trained.
            progress: numbers.
            tensors: state dicts by name.

        Raises:
            EscNetError: the disk is full, or a similar failure.
        """
        content = {
            "format": _FORMAT,
            "task": task,
            "progress": dataclasses.asdict(progress),
            **tensors,
        }
        with self.writing(self.state), atomic_file(self.state) as temporary:
            torch.save(content, temporary)

    @contextlib.contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Within, failures to write are EscNetErrors that say that what was there is still there.

        torch and safetensors raise errors of their own kinds when a disk is full.
        """
        try:
            yield
        except (OSError, SafetensorError, RuntimeError) as error:
            raise EscNetError(
                f"cannot write {path}: {error}. What was saved before is unharmed: make room, then "
                "resume the run"
            ) from error

    def write_text(self, path: Path, text: str) -> None:
        """Write a file of this folder, whole or not at all; raises as :meth:`save` does."""
        with self.writing(path), atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def load(self, task: str) -> tuple[Progress, dict[str, Any]]:
        """The state that :meth:`save` wrote, tensors on the CPU.

        Raises:
            InputError: it is another task's, of another format, or damaged.
        """
        try:
            content = self._content()
            version, of = content.pop("format"), content.pop("task")
            progress = Progress(**content.pop("progress")) if version == _FORMAT else Progress()
        except Exception as error:  # a damaged file makes the unpickler stumble anywhere
            raise self._damaged(error) from error
        if version != _FORMAT:
            raise InputError(
                f"{self.state} has format {version!r}, this version of escnet reads {_FORMAT}: "
                "resume with the version that wrote it"
            )
        if of != task:
            raise InputError(f"{self.state} is the state of a run of {of!r}, this is {task!r}")
        return progress, content

    def begun_with(self) -> str | None:
        """The configuration that the state keeps; None if it keeps none. No tensor is read.

        Raises:
            InputError: as :meth:`load`.
        """
        try:
            found: str | None = self._content(mmap=True).get("config")
        except Exception as error:
            raise self._damaged(error) from error
        return found

    def _content(self, *, mmap: bool = False) -> dict[str, Any]:
        found: dict[str, Any] = torch.load(
            self.state, map_location="cpu", weights_only=True, mmap=mmap
        )
        return found

    def _damaged(self, error: Exception) -> InputError:
        return InputError(
            f"{self.state} is no state of a run, or damaged ({error}): start anew in another folder"
        )
