"""What the processor of this machine calls itself, how much of it a container may use, and how busy
it is; cheap enough to ask at every start."""

import functools
import os
import platform
from pathlib import Path
from typing import Final

__all__ = [
    "core_quota",
    "load_averages",
    "processor_features",
    "processor_model",
    "system_name",
]

_CPUINFO: Final = Path("/proc/cpuinfo")
#: Arm's cores have numbers in place of a name; where there is one, it is of all of an architecture:
#: "ARMv8 Processor rev 1 (v8l)".
_GENERIC: Final = "ARMv"
_ARM: Final = ("CPU implementer", "CPU architecture", "CPU variant", "CPU part")
#: What instructions there are, of x86 and of Arm.
_FEATURES: Final = ("flags", "Features")


def system_name() -> str:
    """System and architecture, such as "linux-x86_64"."""
    return f"{platform.system()}-{platform.machine()}".lower()


def processor_model(cpuinfo: Path = _CPUINFO) -> str:
    """The model's name, such as "AMD EPYC 7B13"; of an Arm core its numbers; never empty.

    Without ``cpuinfo`` (on other systems than Linux) it is what can be had without starting a
    program, which may be as little as "arm64".

    Args:
        cpuinfo: Linux's list of cores. Its first one is read and no more: a list of hundreds of
            cores takes the kernel milliseconds to write.
    """
    found: dict[str, str] = {}
    try:
        with cpuinfo.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                name = value.strip()
                if key.strip() == "model name" and name and not name.startswith(_GENERIC):
                    return name
                if not line.strip() and found:
                    break  # the next core
                found[key.strip()] = value.strip()
    except OSError:
        found.clear()
    arm = [found[key] for key in _ARM if found.get(key)]
    if arm:
        return f"{platform.machine()} {' '.join(arm)}"
    return os.environ.get("PROCESSOR_IDENTIFIER") or platform.machine() or "unknown"


def processor_features(cpuinfo: Path = _CPUINFO) -> frozenset[str]:
    """Features of the processor that the system lets programs use; empty if it does not say.

    Args:
        cpuinfo: see :func:`processor_model`.
    """
    try:
        with cpuinfo.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() in _FEATURES:
                    return frozenset(value.split())
    except OSError:
        pass
    return frozenset()


def load_averages() -> tuple[float, ...] | None:
    """Processes that run or wait to, on average over 1, 5 and 15 minutes; None if unknown."""
    if not hasattr(os, "getloadavg"):
        return None
    try:
        return tuple(round(value, 2) for value in os.getloadavg())
    except OSError:
        return None


@functools.cache
def core_quota(root: Path = Path("/")) -> int | None:
    """Cores whose time a container is given, rounded up; None without a limit, as most are.

    Such a limit (``docker run --cpus 2``) hides no core: a thread for each one that is seen uses
    the time up early in each period, and then all of them stand still.

    Args:
        root: where ``sys`` lies.
    """
    folder = root / "sys/fs/cgroup"
    words = _words(folder / "cpu.max")  # version 2: "200000 100000", or "max 100000"
    if not words:
        old = folder / "cpu"
        words = [*_words(old / "cpu.cfs_quota_us"), *_words(old / "cpu.cfs_period_us")]
    match words:
        case [quota, period] if quota.isdecimal() and period.isdecimal() and int(period):
            return max(-(-int(quota) // int(period)), 1)
    return None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return []
