"""Energy counters of this machine.

On a CPU RAPL's counters of the processor packages, on a GPU NVML's counter of the one that
computes, on a Jetson the power of the whole module as tegrastats prints it, integrated over time.
"""

import math
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Final, Protocol

from escnet_runtime.nvidia import Gpu

__all__ = ["EnergyCounter", "Rapl", "Tegrastats", "module_watts", "open_counter"]

_TEGRASTATS: Final = "tegrastats"
_INTERVAL_MS: Final = 100
#: "VDD_IN 5123mW/5000mW", without units in JetPack 4: the first is now, the second an average.
_RAIL: Final = re.compile(r"\b([A-Z][A-Z0-9_]*) (\d+)(?:mW)?/\d+(?:mW)?(?= |$)", re.MULTILINE)
#: Rails that carry all of the power; the first one that exists is used. It is the module's on an
#: Orin Nano, an Orin NX and a Xavier NX, and the board's on an AGX Thor (jetson_stats, pull request
#: 900) and on a Nano (its issue 51).
_WHOLE: Final = ("VDD_IN", "VIN", "POM_5V_IN")
#: Rails that add up to the module's power where there is no such rail: an AGX Orin's (whose
#: VDDQ_VDD2_1V8AO is part of VIN_SYS_5V0) and an AGX Xavier's.
_PARTS: Final = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
)


class EnergyCounter(Protocol):
    """Counts joules; ``source`` names the counter and what it measures."""

    source: str

    def joules(self) -> float:
        """Energy so far, from an arbitrary start; NaN if the counter is lost."""

    def close(self) -> None:
        """Stop counting."""


def open_counter(*, gpu: Gpu | None, root: Path = Path("/")) -> EnergyCounter | None:
    """The counter of the GPU or of the processor that computes; None if none can be read."""
    if shutil.which(_TEGRASTATS):
        return Tegrastats()
    if gpu is not None:
        return _nvml(gpu.uuid)
    zones = _packages(root / "sys/class/powercap")
    return Rapl(zones) if zones else None


class Rapl:
    """Counters of processor packages, which wrap around.

    Args:
        zones: powercap folders that can be read.
    """

    source = "RAPL: processor packages"

    def __init__(self, zones: Iterable[Path]) -> None:
        self._zones = list(zones)
        self._last = [_integer(zone / "energy_uj") or 0 for zone in self._zones]
        self._range = [_integer(zone / "max_energy_range_uj") or 0 for zone in self._zones]
        self._total = 0

    def joules(self) -> float:
        """Energy since this object was made. Call it before a counter wraps: once a minute."""
        for index, zone in enumerate(self._zones):
            now = _integer(zone / "energy_uj") or self._last[index]
            passed = now - self._last[index]
            self._total += passed if passed >= 0 else passed + self._range[index]
            self._last[index] = now
        return self._total / 1e6

    def close(self) -> None:
        """Nothing is open."""


class Tegrastats:
    """Integrates the power that ``tegrastats`` prints.

    Args:
        stream: lines of its output; by default the tool is started.
    """

    source = "tegrastats: the whole module (an AGX Thor, a Nano: the board)"

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._process: subprocess.Popen[str] | None = None
        if stream is None:
            command = [_TEGRASTATS, "--interval", str(_INTERVAL_MS)]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert self._process.stdout is not None
            stream = self._process.stdout
        self._stream, self._closed = stream, False
        self._lock = threading.Lock()
        self._joules, self._since, self._watts = 0.0, time.monotonic(), 0.0
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def joules(self) -> float:
        """Energy since this object was made; power is taken as constant between two lines.

        NaN if the tool has ended by itself: its last power would otherwise count for ever.
        """
        if self._process is not None and not self._closed and self._process.poll() is not None:
            return math.nan
        with self._lock:
            return self._joules + self._watts * (time.monotonic() - self._since)

    def close(self) -> None:
        """End the tool."""
        self._closed = True
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        self._thread.join()
        if self._process is not None:
            self._stream.close()

    def _follow(self) -> None:
        for line in self._stream:
            watts = module_watts(line)
            if watts is None:
                continue
            now = time.monotonic()
            with self._lock:
                self._joules += self._watts * (now - self._since)
                self._since, self._watts = now, watts


def module_watts(line: str) -> float | None:
    """Power of the whole module in a line of tegrastats; None if it does not say.

    It is None for unknown rails too, because it is not known what they add up to.
    """
    rails = {name: int(milliwatts) for name, milliwatts in _RAIL.findall(line)}
    for names in (*((whole,) for whole in _WHOLE), *_PARTS):
        if all(name in rails for name in names):
            return sum(rails[name] for name in names) / 1e3
    return None


class _Nvml:
    source = "NVML: the GPU"

    def __init__(self, uuid: str | None) -> None:
        self._uuid = uuid

    def joules(self) -> float:
        from .nvml import gpu_joules

        found = gpu_joules(self._uuid)
        return math.nan if found is None else found  # 0 would make differences wrong

    def close(self) -> None:
        """Nothing is open."""


def _nvml(uuid: str | None) -> EnergyCounter | None:
    try:
        from .nvml import gpu_joules
    except ModuleNotFoundError:  # the extra `energy`
        return None
    return None if gpu_joules(uuid) is None else _Nvml(uuid)


def _packages(folder: Path) -> list[Path]:
    """Top-level powercap zones, which include their subzones, that this user may read.

    "psys", the whole platform, is left out: it includes the packages.
    """
    zones = sorted(folder.glob("intel-rapl:*"))
    return [
        zone
        for zone in zones
        if zone.name.count(":") == 1
        and _integer(zone / "energy_uj") is not None
        and not _text(zone / "name").startswith("psys")
    ]


def _integer(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    """The content of a small file; empty if it cannot be read."""
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
