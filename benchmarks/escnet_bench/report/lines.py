"""Panels of lines: latency and memory by number of categories."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from .colours import Styles
from .facts import Machine, Result, Timing
from .grouping import KEPT, grouped, series_name, timings_of, usual_precision
from .panels import Panel, Series, log_axis

__all__ = ["latency_panels", "memory_panels", "styles_of"]

Value: TypeAlias = Callable[[Timing], float | None]


def styles_of(results: Sequence[Result]) -> Styles:
    """Colours of all implementations of all files."""
    names = [one.implementation for result in results for one in result.timings]
    names += [one.implementation for result in results for one in result.accuracies]
    return Styles.of(names)


def latency_panels(results: Sequence[Result], styles: Styles) -> list[Panel]:
    """Milliseconds by number of categories, a line for each implementation."""
    return _line_panels(results, styles, lambda one: one.p50_ms, "ms an image, median", 1.0)


def memory_panels(results: Sequence[Result], styles: Styles) -> tuple[list[Panel], list[Panel]]:
    """Memory by number of categories: of the process, and on the GPU."""
    host = _line_panels(
        results, styles, lambda one: one.peak_memory_bytes, "MB, peak of the process", 1e6
    )
    device = _line_panels(
        results, styles, lambda one: one.device_memory_bytes, "MB on the GPU", 1e6
    )
    return host, device


def _line_panels(
    results: Sequence[Result], styles: Styles, value: Value, label: str, unit: float
) -> list[Panel]:
    found = [
        (one, number / unit)
        for one in timings_of(results)
        if (number := value(one)) is not None and number > 0
    ]
    panels = []
    for model, ones in sorted(grouped(found, lambda entry: entry[0].model).items()):
        # Machines of one model have the same axes: they stand side by side to be compared.
        x = log_axis([one.categories for one, _ in ones], "categories", numbers=True)
        y = log_axis([number for _, number in ones], label)
        machines = [*grouped(ones, lambda entry: entry[0].machine)]
        places = grouped(ones, _place)
        for machine, allocator in sorted(places, key=lambda p: (machines.index(p[0]), p[1])):
            here = places[machine, allocator]
            series, notes = _series(here, styles)
            if allocator == KEPT:
                notes.append("allocator keeps memory")
            note = "; ".join(notes)
            panels.append(
                Panel(model=model, machine=machine, note=note, x=x, y=y, series=tuple(series))
            )
    return panels


def _place(entry: tuple[Timing, float]) -> tuple[Machine, str]:
    """The panel of a timing: the default allocator and none named are the same."""
    allocator = entry[0].allocator
    return entry[0].machine, KEPT if allocator == KEPT else ""


def _series(here: Sequence[tuple[Timing, float]], styles: Styles) -> tuple[list[Series], list[str]]:
    """Lines of a panel, and what is common to them."""
    usual, note = usual_precision([one for one, _ in here])
    series = []
    for (name, precision), entries in grouped(here, _line).items():
        files = grouped(entries, lambda entry: entry[0].file)
        apart = len({one.categories for one, _ in entries}) < len(entries)
        for file, points in (files if apart else {"": entries}).items():
            series.append(
                Series(
                    name=series_name(
                        name,
                        None if precision == usual else precision,
                        file=file if apart else None,
                    ),
                    style=styles.index[name],
                    points=tuple(sorted((one.categories, number) for one, number in points)),
                )
            )
    return series, [note]


def _line(entry: tuple[Timing, float]) -> tuple[str, str]:
    return entry[0].implementation, entry[0].precision
