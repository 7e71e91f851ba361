"""What this process holds of the machine's memory, and what the machine can still give."""

import sys
from pathlib import Path
from typing import Final

if sys.platform != "win32":
    import resource

__all__ = ["available_memory", "peak_memory"]

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


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that the machine, or the container this runs in, can still give; None if not known.

    ``root`` is where ``proc`` and ``sys`` lie.
    """
    found = [_meminfo(root / "proc/meminfo"), _control_group(root / "sys/fs/cgroup")]
    known = [size for size in found if size is not None]
    return min(known) if known else None


def _meminfo(path: Path) -> int | None:
    for line in (_text(path) or "").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _control_group(folder: Path) -> int | None:
    """Bytes left below a container's limit (cgroup version 2; "max" is no limit)."""
    most, used = _text(folder / "memory.max"), _text(folder / "memory.current")
    if most is None or used is None or not most.isdecimal() or not used.isdecimal():
        return None
    # Cached files count as used, and make room when memory is asked for: MemAvailable has it so.
    held = max(int(used) - _cached(folder / "memory.stat"), 0)
    return max(int(most) - held, 0)


def _cached(path: Path) -> int:
    """Bytes of files in a control group's page cache; 0 if not known."""
    pairs = [line.split() for line in (_text(path) or "").splitlines()]
    return sum(int(pair[1]) for pair in pairs if pair[0] in ("active_file", "inactive_file"))


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
