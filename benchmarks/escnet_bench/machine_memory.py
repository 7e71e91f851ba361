"""How much memory this machine, or the container this runs in, can still give."""

from pathlib import Path

__all__ = ["available_memory"]


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes; None where it is not known. ``root`` is where ``proc`` and ``sys`` lie."""
    found = [_meminfo(root / "proc/meminfo"), _control_group(root / "sys/fs/cgroup")]
    known = [size for size in found if size is not None]
    return min(known) if known else None


def _meminfo(path: Path) -> int | None:
    for line in (_text(path) or "").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _control_group(folder: Path) -> int | None:
    """What a container's limit leaves (version 2; "max" is no limit)."""
    most, used = _text(folder / "memory.max"), _text(folder / "memory.current")
    if most is None or used is None or not most.isdecimal() or not used.isdecimal():
        return None
    return max(int(most) - int(used), 0)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
