"""Energy that this machine has taken, from whichever counter it has.

On a CPU RAPL's counters of the processor packages, on a GPU NVML's of the one that computes, on a
Jetson the power of the whole module as tegrastats tells it, integrated over time.
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
#: Rails that are all of it, the first of them that there is: of the module on an Orin Nano, an Orin
#: NX and a Xavier NX, of the board on an AGX Thor (jetson_stats, pull request 900) and on a Nano
#: (its issue 51).
_WHOLE: Final = ("VDD_IN", "VIN", "POM_5V_IN")
#: Rails that add up to a module without such a one: an AGX Orin's, whose VDDQ_VDD2_1V8AO is in
#: VIN_SYS_5V0, and an AGX Xavier's.
_PARTS: Final = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
)


class EnergyCounter(Protocol):
    """Counts joules; ``source`` says which counter, and of what."""

    source: str

    def joules(self) -> float:
        """So far, from any beginning; NaN where the counter is lost."""

    def close(self) -> None:
        """Stop counting."""


def open_counter(*, gpu: Gpu | None, root: Path = Path("/")) -> EnergyCounter | None:
    """The counter of what computes here, a GPU or the processor; None where none can be read."""
    if shutil.which(_TEGRASTATS):
        return Tegrastats()
    if gpu is not None:
        return _nvml(gpu.uuid)
    zones = _packages(root / "sys/class/powercap")
    return Rapl(zones) if zones else None


class Rapl:
    """Counters of processor packages, which wrap around.

    Args:
        zones: folders of powercap that can be read.
    """

    source = "RAPL: processor packages"

    def __init__(self, zones: Iterable[Path]) -> None:
        self._zones = list(zones)
        self._last = [_integer(zone / "energy_uj") or 0 for zone in self._zones]
        self._range = [_integer(zone / "max_energy_range_uj") or 0 for zone in self._zones]
        self._total = 0

    def joules(self) -> float:
        """Since it was made. Read it more often than a counter wraps around, once a minute."""
        for index, zone in enumerate(self._zones):
            now = _integer(zone / "energy_uj") or self._last[index]
            passed = now - self._last[index]
            self._total += passed if passed >= 0 else passed + self._range[index]
            self._last[index] = now
        return self._total / 1e6

    def close(self) -> None:
        """Nothing is open."""


class Tegrastats:
    """Integrates what ``tegrastats`` prints.

    Args:
        stream: its lines; the tool itself, started, by default.
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
        """Since it was made; power is taken as constant from one line to the next.

        NaN if the tool has ended by itself: what it said last would go on for ever.
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
    """Power of the whole module in a line of tegrastats; None if it does not tell.

    None also for rails that are not known here: what they add up to is not known either.
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
        return math.nan if found is None else found  # a lost GPU: 0 would make the next one all

    def close(self) -> None:
        """Nothing is open."""


def _nvml(uuid: str | None) -> EnergyCounter | None:
    try:
        from .nvml import gpu_joules
    except ModuleNotFoundError:  # the extra `energy`
        return None
    return None if gpu_joules(uuid) is None else _Nvml(uuid)


def _packages(folder: Path) -> list[Path]:
    """Top-level zones, which hold the others, that this user may read.

    Without "psys", the whole platform: the packages are in it as well.
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
    """What stands in a small file; empty where it cannot be read."""
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
