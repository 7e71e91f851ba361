"""The record of a run: JSON lines, and the same as TensorBoard curves."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final

from torch.utils.tensorboard import SummaryWriter

from escnet_runtime.atomic import atomic_file

__all__ = ["METRICS", "MetricsLog"]

METRICS: Final = "metrics.jsonl"


class MetricsLog:
    """Appends to the record; what a resumed run will write again is cut off first.

    Args:
        folder: of the run.
        step: the last step that is kept.
        active: False writes nothing (in all processes but one).
    """

    def __init__(self, folder: Path, step: int, *, active: bool) -> None:
        self._active = active
        if not active:
            return
        path = folder / METRICS
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= step]
        with atomic_file(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._curves = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Add figures of a step; ``seconds`` is the time trained so far."""
        if not self._active:
            return
        finite = {k: round(v, 6) if math.isfinite(v) else None for k, v in values.items()}
        line = {"step": step, "seconds": round(seconds, 2), **finite}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._curves.add_scalar(name, value, step)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._active:
            self._file.close()
            self._curves.close()


def _lines(path: Path) -> list[str]:
    """Whole lines; a killed run may leave half of one."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
