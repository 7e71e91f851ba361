"""A chart as data: axes and what stands in them, for the page and for plots."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .facts import Machine

__all__ = ["Axis", "Panel", "Series", "log_axis", "share_axis"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """``low`` to ``high``; ``ticks`` are those with a number."""

    label: str
    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool
    percent: bool = False

    def place(self, value: float) -> float:
        """0 at ``low``, 1 at ``high``."""
        if self.log:
            span = math.log(self.high / self.low)
            return math.log(value / self.low) / span
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """A line, or a point; ``style`` is an index into the colours."""

    name: str
    style: int
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One chart: a model on a machine."""

    model: str
    machine: Machine
    note: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    lines: bool = True


def log_axis(values: Sequence[float], label: str, *, numbers: bool = False) -> Axis:
    """From the least to the greatest with some air; ticks at the numbers, or at 1, 2 and 5."""
    low, high = min(values), max(values)
    air = 1.15 if numbers else 1.25
    low, high = low / air, high * air
    if numbers and len(set(values)) <= 6:
        return Axis(label=label, low=low, high=high, ticks=tuple(sorted(set(values))), log=True)
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    wide = math.log10(high / low) > 2.2
    steps: tuple[int, ...] = (1,) if math.log10(high / low) > 4 else (1, 3) if wide else (1, 2, 5)
    every = [step * 10.0**decade for decade in decades for step in steps]
    ticks = [tick for tick in every if low <= tick <= high]
    if len(ticks) < 2:  # one number is no scale
        low = max(tick for tick in every if tick <= low)
        high = min(tick for tick in every if tick >= high)
        ticks = [tick for tick in every if low <= tick <= high]
    return Axis(label=label, low=low, high=high, ticks=tuple(ticks), log=True)


def share_axis(values: Sequence[float], label: str) -> Axis:
    """An axis of shares, which fits the values and stays within 0 to 1."""
    low, high = min(values), max(values)
    air = max(0.15 * (high - low), 0.0005)
    low, high = max(0.0, low - air), min(1.0, high + air)
    step = 10.0 ** math.floor(math.log10((high - low) / 2))
    step *= next(f for f in (5, 2, 1) if (high - low) / (f * step) >= 2)
    first = math.ceil(low / step - 1e-9)
    ticks = [round(first * step + i * step, 10) for i in range(12)]
    return Axis(
        label=label,
        low=low,
        high=high,
        ticks=tuple(tick for tick in ticks if tick <= high + 1e-12),
        log=False,
        percent=True,
    )
