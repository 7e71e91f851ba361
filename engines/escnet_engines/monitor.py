"""Progress of a compilation and the request to stop it, shared by two threads."""

import threading
from dataclasses import dataclass

__all__ = ["BuildState"]


@dataclass(slots=True)
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class BuildState:
    """Phases of one compilation, as the builder's own progress monitor reports them.

    The builder calls from any of its threads, and the waiting thread reads. Nothing here raises:
    the builder is C++, which no Python exception may pass through.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._fraction = 0.0
        self._cancelled = False

    def cancel(self) -> None:
        """Ask the builder to stop, which it does at its next step."""
        self._cancelled = True

    @property
    def cancelled(self) -> bool:
        """Whether it was asked to stop."""
        return self._cancelled

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase of ``steps`` steps begins, inside the phase ``parent`` if one is given."""
        with self._lock:
            self._phases[phase] = _Phase(parent=parent, steps=max(steps, 1))

    def step(self, phase: str, index: int) -> bool:
        """Step ``index`` of a phase, from 0, is done; False asks the builder to stop."""
        with self._lock:
            if phase in self._phases:
                self._phases[phase].done = index + 1
        return not self._cancelled

    def finish(self, phase: str) -> None:
        """A phase ends."""
        with self._lock:
            self._phases.pop(phase, None)

    def read(self) -> tuple[float, str]:
        """The fraction done, which never decreases, and the name of the innermost phase."""
        with self._lock:
            inner = ""
            for name, phase in self._phases.items():
                if phase.parent is None:
                    self._fraction = max(self._fraction, self._done(name, phase))
                inner = name
            return self._fraction, inner

    def _done(self, name: str, phase: _Phase) -> float:
        inside = [
            self._done(child, one)
            for child, one in self._phases.items()
            if one.parent == name and child != name
        ]
        return min(1.0, (phase.done + max(inside, default=0.0)) / phase.steps)
