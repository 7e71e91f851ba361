"""What this process holds of the machine's memory."""

import resource
import sys
from pathlib import Path
from typing import Final

__all__ = ["peak_memory"]

_STATUS: Final = Path("/proc/self/status")


def peak_memory() -> int | None:
    """Most resident memory of this process so far, in bytes; None if not known."""
    # Linux's getrusage also counts what the process that started this one held at that time.
    if _STATUS.exists():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
