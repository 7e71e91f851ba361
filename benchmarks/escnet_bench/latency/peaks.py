"""Peak memory: a process of its own for each implementation.

It makes one call for each number of categories, upwards: the peak so far is of the largest yet.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from escnet_runtime.errors import EscNetError

from .forecast import Forecast
from .plan import Allocator, Cell, Variant
from .process import Served
from .rows import Found

__all__ = ["PeakMemory", "measure_peaks"]

#: Seconds that a process takes to import its libraries.
_STARTING: Final = 6.0
_LEAST_WAIT: Final = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PeakMemory:
    """Of a process that ran one implementation; ``device`` is None on a CPU."""

    host: int | None
    device: int | None


def measure_peaks(
    found: Found,
    forecast: Forecast,
    start: Callable[[Allocator], Served],
    *,
    until: float,
    clock: Callable[[], float] = time.monotonic,
    step: Callable[[str], object] = lambda _: None,
) -> dict[tuple[Variant, int], PeakMemory]:
    """Measure what fits in the time; what does not is said in ``found.left_out``.

    Args:
        found: what has rows, the most important implementations first.
        forecast: how long first calls take.
        start: begins a process that measures.
        until: by ``clock``, when to stop.
    """
    peaks: dict[tuple[Variant, int], PeakMemory] = {}
    for variant, numbers in _wanted(found).items():
        fitting = _fitting(variant, numbers, forecast, until - clock())
        for number in [one for one in numbers if one not in fitting]:
            _leave_out(found, variant, number, "no time was left; give more --minutes")
        if not fitting:
            continue
        served = start("default")
        try:
            for number in fitting:
                step(f"memory of {variant.name} at {number} categories")
                answer = served.ask(
                    "open",
                    variant,
                    categories=number,
                    seconds=max(until - clock(), 0.0) + _LEAST_WAIT,
                )
                peaks[variant, number] = PeakMemory(
                    host=answer["peak_memory_bytes"], device=answer["device_memory_bytes"]
                )
        except EscNetError as error:
            _leave_out(found, variant, number, str(error))
        finally:
            served.close()
    return peaks


def _wanted(found: Found) -> Mapping[Variant, list[int]]:
    wanted: dict[Variant, set[int]] = {}
    for cell, timed in found.timed.items():
        for variant in timed:
            wanted.setdefault(variant, set()).add(cell.categories)
    return {variant: sorted(numbers) for variant, numbers in wanted.items()}


def _fitting(
    variant: Variant, numbers: Iterable[int], forecast: Forecast, seconds: float
) -> list[int]:
    """The smallest numbers of categories whose calls fit, together, in so many seconds."""
    fitting, needed = [], _STARTING
    for number in numbers:
        cell = Cell(categories=number, allocator="default")
        needed += forecast.opening(variant, cell) or 0.0
        if needed > seconds:
            break
        fitting.append(number)
    return fitting


def _leave_out(found: Found, variant: Variant, number: int, reason: str) -> None:
    found.leave_out(variant, Cell(categories=number, allocator="default"), f"memory: {reason}")
