"""Peak memory, measured in a process of its own for each implementation.

The process makes one call for each number of categories, in ascending order, so that the peak so
far belongs to the last one. Only one allocator is measured, the default one if it was asked for:
another would take as long again.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
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
    """Peak memory of a process that ran one implementation; ``device`` is None on a CPU."""

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
) -> dict[tuple[Variant, Cell], PeakMemory]:
    """Measure what fits in the time; ``found.left_out`` names the rest.

    Args:
        found: the measurements so far, the most important implementations first.
        forecast: estimates first calls.
        start: starts a measuring process.
        until: when to stop, by ``clock``.
    """
    peaks: dict[tuple[Variant, Cell], PeakMemory] = {}
    allocator: Allocator = "default"
    if all(cell.allocator != allocator for cell in found.timed):
        allocator = "kept"
    for variant, cells in _wanted(found, allocator).items():
        fitting = _fitting(variant, cells, forecast, until - clock())
        for cell in [one for one in cells if one not in fitting]:
            _leave_out(found, variant, cell, "no time was left; give more --minutes")
        if not fitting:
            continue
        waiting = list(fitting)
        try:
            with closing(start(allocator)) as served:
                for cell in fitting:
                    step(f"memory of {variant.name} at {cell.categories} categories")
                    answer = served.ask(
                        "open",
                        variant,
                        categories=cell.categories,
                        seconds=max(until - clock(), 0.0) + _LEAST_WAIT,
                    )
                    waiting.remove(cell)
                    peaks[variant, cell] = PeakMemory(
                        host=answer["peak_memory_bytes"], device=answer["device_memory_bytes"]
                    )
        except EscNetError as error:  # leaves out this number of categories and larger ones
            for cell in waiting:
                _leave_out(found, variant, cell, str(error))
    return peaks


def _wanted(found: Found, allocator: Allocator) -> Mapping[Variant, list[Cell]]:
    wanted: dict[Variant, set[int]] = {}
    for cell, timed in found.timed.items():
        for variant in timed if cell.allocator == allocator else ():
            wanted.setdefault(variant, set()).add(cell.categories)
    return {
        variant: [Cell(categories=number, allocator=allocator) for number in sorted(numbers)]
        for variant, numbers in wanted.items()
    }


def _fitting(
    variant: Variant, cells: Iterable[Cell], forecast: Forecast, seconds: float
) -> list[Cell]:
    """The cells with the fewest categories whose calls fit together into so many seconds."""
    fitting, needed = [], _STARTING
    for cell in cells:
        needed += forecast.opening(variant, cell) or 0.0
        if needed > seconds:
            break
        fitting.append(cell)
    return fitting


def _leave_out(found: Found, variant: Variant, cell: Cell, reason: str) -> None:
    found.leave_out(variant, cell, f"memory: {reason}")
