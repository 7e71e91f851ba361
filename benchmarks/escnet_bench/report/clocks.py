"""Clocks before and after a measurement, in words; and whether heat or power held it back."""

from collections.abc import Iterator
from dataclasses import dataclass

from .schema import ClocksOf, GpuClocksOf

__all__ = ["Clocks", "throttling"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Clocks:
    """Clocks of a machine at one moment."""

    processor: ClocksOf
    gpus: tuple[GpuClocksOf, ...]

    def __str__(self) -> str:
        """What could be read, for people."""
        one, parts = self.processor, []
        if one.cpu_mhz is not None:
            most = "" if one.cpu_max_mhz is None else f" of {one.cpu_max_mhz:.0f}"
            parts.append(f"cores at {one.cpu_mhz[0]:.0f} to {one.cpu_mhz[1]:.0f}{most} MHz")
        if one.governor is not None:
            parts.append(f"governor {one.governor}")
        if one.cpu_throttled is not None:
            parts.append(f"throttled {one.cpu_throttled} times since the start")
        return "; ".join([*parts, *(_gpu(gpu) for gpu in self.gpus)]) or "could not be read"


def _gpu(gpu: GpuClocksOf) -> str:
    parts = [
        f"{value:.0f} {unit}"
        for value, unit in ((gpu.sm_mhz, "MHz"), (gpu.celsius, "°C"), (gpu.watts, "W"))
        if value is not None
    ]
    return " ".join([gpu.name, ", ".join([*parts, *(gpu.throttle_reasons or ())])])


def throttling(before: Clocks | None, after: Clocks | None) -> Iterator[str]:
    """Remarks on throttling: where the clocks show that the machine was slower than it can be."""
    if before is not None and after is not None:
        first, last = before.processor.cpu_throttled, after.processor.cpu_throttled
        if first is not None and last is not None and last > first:
            yield f"the processor throttled itself {last - first} times meanwhile"
    for when, clocks in (("before", before), ("after", after)):
        for gpu in () if clocks is None else clocks.gpus:
            if gpu.throttle_reasons:
                reasons = ", ".join(gpu.throttle_reasons)
                yield f"{gpu.name} was held back {when} the measurement ({reasons})"
