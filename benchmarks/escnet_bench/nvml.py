"""Clocks, throttling and energy of NVIDIA's GPUs, from NVML (``escnet-bench[energy]``)."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import pynvml

from .clocks import GpuClocks

__all__ = ["gpu_clocks", "gpu_joules"]

_T = TypeVar("_T")
#: Bits of nvmlClocksEventReasons that mean throttling, unlike those for idling and for settings.
_REASONS: Final = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}


def gpu_clocks(nvml: Any = pynvml) -> tuple[GpuClocks, ...]:
    """Clocks of all GPUs that the driver shows; empty without a driver."""
    with _opened(nvml) as handles:
        return tuple(_clocks(nvml, handle) for handle in handles if handle is not None)


def gpu_joules(uuid: str | None = None, nvml: Any = pynvml) -> float | None:
    """Energy of the computing GPU since the driver was loaded; None if the GPU has no counter.

    Args:
        uuid: of that GPU. By default it is the first one in CUDA_VISIBLE_DEVICES, by index or UUID,
            or else NVML's first, whose order is not always CUDA's.
        nvml: the library.
    """
    wanted = uuid or os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip()
    with _opened(nvml) as handles:
        if wanted.startswith("GPU-"):
            handle = _asked(nvml, nvml.nvmlDeviceGetHandleByUUID, wanted)
        else:
            index = int(wanted) if wanted.isdecimal() else 0
            handle = handles[index] if index < len(handles) else None
        if handle is None:
            return None
        millijoules = _asked(nvml, nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
    return None if millijoules is None else millijoules / 1e3


def _clocks(nvml: Any, handle: Any) -> GpuClocks:
    name = _asked(nvml, nvml.nvmlDeviceGetName, handle) or "unknown"
    bits = _asked(nvml, nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle) or 0
    milliwatts = _asked(nvml, nvml.nvmlDeviceGetPowerUsage, handle)
    sm, memory = nvml.NVML_CLOCK_SM, nvml.NVML_CLOCK_MEM
    return GpuClocks(
        name=name.decode() if isinstance(name, bytes) else name,
        sm_mhz=_asked(nvml, nvml.nvmlDeviceGetClockInfo, handle, sm),
        memory_mhz=_asked(nvml, nvml.nvmlDeviceGetClockInfo, handle, memory),
        max_sm_mhz=_asked(nvml, nvml.nvmlDeviceGetMaxClockInfo, handle, sm),
        celsius=_asked(nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        watts=None if milliwatts is None else milliwatts / 1e3,
        throttle_reasons=tuple(text for bit, text in _REASONS.items() if bits & bit),
    )


@contextmanager
def _opened(nvml: Any) -> Iterator[list[Any]]:
    """Handles of the GPUs, None for one that cannot be queried; empty without a driver."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        yield []
        return
    try:
        count = _asked(nvml, nvml.nvmlDeviceGetCount) or 0
        yield [_asked(nvml, nvml.nvmlDeviceGetHandleByIndex, i) for i in range(count)]
    finally:
        nvml.nvmlShutdown()


def _asked(nvml: Any, question: Callable[..., _T], *arguments: Any) -> _T | None:
    """The answer to a query; None if this GPU does not support it (a Jetson, a virtual GPU)."""
    try:
        return question(*arguments)
    except nvml.NVMLError:
        return None
