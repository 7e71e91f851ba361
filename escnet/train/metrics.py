"""The record of a run: JSON lines, and the same as TensorBoard curves."""

import json
import math
import os
from collections.abc import Mapping

from torch.utils.tensorboard import SummaryWriter

from escnet_runtime.closing import Closing

from .folder import Progress, RunFolder

__all__ = ["MetricsLog"]


class MetricsLog(Closing):
    """Appends to the record; what a resumed run will write again is cut off first.

    Args:
        folder: of the run.
        progress: where the run is; lines behind that state are cut off.
        active: False writes nothing (in all processes but one).
    """

    def __init__(self, folder: RunFolder, progress: Progress, *, active: bool) -> None:
        self._active = active
        if not active:
            return
        self._file = folder.metrics.open("ab")
        # By bytes, not by steps: a killed run may leave half a line. A file that is shorter than
        # it was has been edited; it is kept as it is.
        if self._file.tell() > progress.metrics:
            os.truncate(folder.metrics, progress.metrics)
        self._curves = SummaryWriter(str(folder.curves), purge_step=progress.step + 1)

    @property
    def size(self) -> int:
        """Bytes written so far, on the disk."""
        if not self._active:
            return 0
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def write(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Add figures of a step; ``seconds`` is the time trained so far. NaN becomes null."""
        if not self._active:
            return
        finite = {k: float(f"{v:.6g}") if math.isfinite(v) else None for k, v in values.items()}
        line = {"step": step, "seconds": round(seconds, 2), **finite}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        for name, value in values.items():
            self._curves.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the files."""
        if self._active:
            self._file.close()
            self._curves.close()
