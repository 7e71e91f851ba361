"""Clocks and throttling of processors and GPUs, where they can be read."""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Clocks", "GpuClocks", "read_clocks"]

_KHZ: Final = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuClocks:
    """One NVIDIA GPU at one moment; ``throttle_reasons`` are NVML's reasons for lower clocks."""

    name: str
    sm_mhz: int | None
    memory_mhz: int | None
    max_sm_mhz: int | None
    celsius: int | None
    watts: float | None
    throttle_reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Clocks:
    """The machine's clocks at one moment; None or empty where they cannot be read.

    Attributes:
        cpu_mhz: lowest and highest clock of the cores.
        cpu_max_mhz: highest clock that the cores may reach.
        governor: frequency governor of the cores; several, separated by commas, if cores differ.
        cpu_throttled: how often heat has throttled the processor since boot.
        gpus: empty without the extra ``energy``.
    """

    cpu_mhz: tuple[float, float] | None
    cpu_max_mhz: float | None
    governor: str | None
    cpu_throttled: int | None
    gpus: tuple[GpuClocks, ...]


def read_clocks(root: Path = Path("/")) -> Clocks:
    """Read the clocks; ``root`` is the folder of ``proc`` and ``sys``."""
    cores = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*"))
    now = [mhz / _KHZ for mhz in _numbers(core / "cpufreq/scaling_cur_freq" for core in cores)]
    now = now or _cpuinfo_mhz(root / "proc/cpuinfo")
    most = _numbers(core / "cpufreq/cpuinfo_max_freq" for core in cores)
    governors = {_text(core / "cpufreq/scaling_governor") for core in cores} - {None}
    return Clocks(
        cpu_mhz=(min(now), max(now)) if now else None,
        cpu_max_mhz=max(most) / _KHZ if most else None,
        governor=",".join(sorted(filter(None, governors))) or None,
        cpu_throttled=_throttled(cores),
        gpus=_gpus(),
    )


def _throttled(cores: Iterable[Path]) -> int | None:
    """Thermal events of all cores; a package's events, which each core repeats, are not counted."""
    counts = _numbers(core / "thermal_throttle/core_throttle_count" for core in cores)
    return int(sum(counts)) if counts else None


def _cpuinfo_mhz(path: Path) -> list[float]:
    found = []
    for line in (_text(path) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "cpu MHz":
            with contextlib.suppress(ValueError):  # an emulator may say "unknown"
                found.append(float(value))
    return found


def _numbers(paths: Iterable[Path]) -> list[float]:
    """The numbers in files; files that are missing or hold no number are left out."""
    found = []
    for path in paths:
        text = _text(path)
        if text is not None and text.isdecimal():
            found.append(float(text))
    return found


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _gpus() -> tuple[GpuClocks, ...]:
    try:
        from .nvml import gpu_clocks
    except ModuleNotFoundError:  # the extra `energy`
        return ()
    return gpu_clocks()
