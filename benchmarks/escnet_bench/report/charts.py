"""What is drawn, as data: panels of lines, stacked bars and points, for the page and for plots."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Final, TypeAlias, TypeVar

from .colours import Styles
from .facts import Accuracy, Machine, Result, Timing

__all__ = [
    "Axis",
    "Bar",
    "Bars",
    "Panel",
    "Row",
    "Series",
    "accuracy_panels",
    "latency_panels",
    "memory_panels",
    "same_panels",
    "series_name",
    "stage_bars",
    "styles_of",
]

_KINDS: Final = 7  # stages of a bar that are drawn apart
_KEPT: Final = "kept"
#: What stages are called for people.
_STAGES: Final = {
    "image_encoder": "image encoder",
    "sam": "SAM blocks",
    "image": "fusion, image",
    "text": "fusion, text",
    "upsample_argmax": "up-sampling",
}
Value: TypeAlias = Callable[[Timing], float | None]
_K = TypeVar("_K")
_V = TypeVar("_V")


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """Stages of one implementation, in milliseconds, in the order of the kinds of its panel."""

    name: str
    parts: tuple[tuple[str, float], ...]
    total: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The bars of one number of categories; they share a scale."""

    categories: int
    bars: tuple[Bar, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bars:
    """Stacked bars of a model on a machine; ``kinds`` in the order of their colours."""

    model: str
    machine: Machine
    kinds: tuple[str, ...]
    rows: tuple[Row, ...]


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
        for one in _timings(results)
        if (number := value(one)) is not None and number > 0
    ]
    panels = []
    for model, ones in sorted(_grouped(found, lambda entry: entry[0].model).items()):
        # Machines of one model have the same axes: they stand side by side to be compared.
        x = _log_axis([one.categories for one, _ in ones], "categories", numbers=True)
        y = _log_axis([number for _, number in ones], label)
        machines = [*_grouped(ones, lambda entry: entry[0].machine)]
        places = _grouped(ones, _place)
        for machine, allocator in sorted(places, key=lambda p: (machines.index(p[0]), p[1])):
            here = places[machine, allocator]
            series, notes = _series(here, styles)
            if allocator == _KEPT:
                notes.append("allocator keeps memory")
            note = "; ".join(notes)
            panels.append(
                Panel(model=model, machine=machine, note=note, x=x, y=y, series=tuple(series))
            )
    return panels


def _timings(results: Sequence[Result]) -> list[Timing]:
    return [one for result in results for one in result.timings]


def _grouped(items: Iterable[_V], key: Callable[[_V], _K]) -> dict[_K, list[_V]]:
    """In the order in which they appear, which is that of the files."""
    found: dict[_K, list[_V]] = defaultdict(list)
    for item in items:
        found[key(item)].append(item)
    return dict(found)


def _place(entry: tuple[Timing, float]) -> tuple[Machine, str]:
    """The panel of a timing: the default allocator and none named are the same."""
    allocator = entry[0].allocator
    return entry[0].machine, _KEPT if allocator == _KEPT else ""


def _by_model(timings: Sequence[Timing]) -> dict[tuple[str, Machine], list[Timing]]:
    """By model and machine, models by their names."""
    groups = _grouped(timings, lambda one: (one.model, one.machine))
    return dict(sorted(groups.items(), key=lambda entry: entry[0][0]))


def _series(here: Sequence[tuple[Timing, float]], styles: Styles) -> tuple[list[Series], list[str]]:
    """Lines of a panel, and what is common to them."""
    usual, note = _usual([one for one, _ in here])
    series = []
    for (name, precision), entries in _grouped(here, _line).items():
        files = _grouped(entries, lambda entry: entry[0].file)
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


def _usual(timings: Sequence[Timing]) -> tuple[str, str]:
    """The precision of most lines, which labels leave out, and a note that says so."""
    counts: dict[str, set[str]] = defaultdict(set)
    for one in timings:
        counts[one.precision].add(one.implementation)
    usual = max(sorted(counts), key=lambda precision: len(counts[precision]))
    return usual, usual if len(counts) == 1 else f"{usual}, unless a label says another"


def series_name(
    name: str,
    precision: str | None = None,
    allocator: str | None = None,
    file: str | None = None,
) -> str:
    """Implementation, precision, allocator and file, as far as they tell lines apart."""
    text = f"{name} {precision}" if precision else name
    if allocator and allocator != "default":
        text += f", {allocator}"
    return f"{text} ({PurePosixPath(file).stem})" if file else text


def _log_axis(values: Sequence[float], label: str, *, numbers: bool = False) -> Axis:
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


def _share_axis(values: Sequence[float], label: str) -> Axis:
    """Shares of 1; as near as the values lie, and never beyond what there can be."""
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


def accuracy_panels(results: Sequence[Result], styles: Styles) -> tuple[list[Panel], list[Panel]]:
    """mIoU against latency, and labels equal to float32 PyTorch's against latency."""
    timed = [
        (one, milliseconds, note)
        for result in results
        for one in result.accuracies
        for milliseconds, note in _times(one, _timings(results))
    ]
    return (
        _point_panels(timed, styles, lambda one: one.miou, "mIoU"),
        _point_panels(
            timed, styles, lambda one: one.pixel_agreement, "labels equal to float32 PyTorch's"
        ),
    )


def _times(one: Accuracy, timings: Sequence[Timing]) -> list[tuple[float, str]]:
    """Milliseconds of what was compared: of the same file, else of the same bundle and backend.

    Of the numbers of categories that were timed, the one nearest to that of the comparison.
    """
    if one.milliseconds is not None:
        return [(one.milliseconds, "")]
    same = [
        timing
        for timing in timings
        if one.bundle is not None
        and timing.bundle == one.bundle
        and timing.p50_ms is not None
        and _plain(timing.implementation) == _plain(one.implementation)
        and (timing.machine.cpu, timing.machine.gpus) == (one.machine.cpu, one.machine.gpus)
    ]
    if not same:
        return []
    nearest = min(same, key=lambda t: (abs(math.log(t.categories / one.categories)), t.file))
    assert nearest.p50_ms is not None
    return [(nearest.p50_ms, f"timed at {nearest.categories} categories")]


def _plain(implementation: str) -> str:
    """ONNX Runtime is called one thing by the latency of a GPU and another by its backend."""
    return implementation.removesuffix("-cuda")


def _point_panels(
    timed: Sequence[tuple[Accuracy, float, str]],
    styles: Styles,
    value: Callable[[Accuracy], float | None],
    label: str,
) -> list[Panel]:
    found = [
        (one, milliseconds, share, note)
        for one, milliseconds, note in timed
        if (share := value(one)) is not None and milliseconds > 0
    ]
    panels = []
    groups = _grouped(found, lambda entry: (entry[0].model, entry[0].machine, _data(entry[0])))
    for (model, machine, data), here in sorted(groups.items(), key=lambda entry: entry[0][0]):
        names = {one.implementation for one, *_ in here}
        notes = {note for *_, note in here if note}
        series = [
            Series(
                name=one.precision if len(names) == 1 else f"{one.implementation} {one.precision}",
                style=styles.index[one.implementation],
                points=((milliseconds, share),),
            )
            for one, milliseconds, share, _ in here
        ]
        common = [next(iter(names))] if len(names) == 1 else []
        panels.append(
            Panel(
                model=model,
                machine=machine,
                note=", ".join([*common, data, *sorted(notes)]),
                x=_log_axis([m for _, m, *_ in here], "ms an image, median"),
                y=_share_axis([share for *_, share, _ in here], label),
                series=tuple(series),
                lines=False,
            )
        )
    return panels


def _data(one: Accuracy) -> str:
    return f"{one.dataset}: {one.images} images, {one.categories} categories"


def same_panels(results: Sequence[Result], styles: Styles) -> list[Panel]:
    """Labels equal to those of ours against latency, as a latency's own rows have them.

    At the number of categories at which most was measured; the largest of several.
    """
    found = [
        one
        for one in _timings(results)
        if one.agreement is not None and one.p50_ms and one.allocator != _KEPT
    ]
    panels = []
    for (model, machine), every in _by_model(found).items():
        counts = _grouped(every, lambda one: one.categories)
        count = max(counts, key=lambda n: (len(counts[n]), n))
        here = counts[count]
        usual, note = _usual(here)
        series = [
            Series(
                name=series_name(
                    one.implementation, None if one.precision == usual else one.precision
                ),
                style=styles.index[one.implementation],
                points=((one.p50_ms or 0.0, one.agreement or 0.0),),
            )
            for one in here
        ]
        panels.append(
            Panel(
                model=model,
                machine=machine,
                note=f"{count} categories; {note}",
                x=_log_axis([one.p50_ms or 0.0 for one in here], "ms an image, median"),
                y=_share_axis([one.agreement or 0.0 for one in here], "labels equal to ours"),
                series=tuple(series),
                lines=False,
            )
        )
    return panels


def stage_bars(results: Sequence[Result]) -> list[Bars]:
    """Where the time goes, for each model and machine."""
    found = [
        replace(one, stages={_STAGES.get(kind, kind): spent for kind, spent in one.stages.items()})
        for one in _timings(results)
        if one.stages and sum(one.stages.values()) > 0
    ]
    kinds = _kinds([one.stages or {} for one in found])
    panels = []
    for (model, machine), every in _by_model(found).items():
        # Memory that is kept is shown where nothing else is: the bars would be twice as many.
        here = [one for one in every if one.allocator != _KEPT] or every
        rows = []
        for categories, ones in _grouped(here, lambda o: o.categories).items():
            rows.append(Row(categories=categories, bars=tuple(_bars(ones, kinds))))
        rows.sort(key=lambda row: row.categories)
        panels.append(Bars(model=model, machine=machine, kinds=kinds, rows=tuple(rows)))
    return panels


def _kinds(stages: Sequence[Mapping[str, float]]) -> tuple[str, ...]:
    """Those with the largest shares, in the order in which they run; the rest is "other"."""
    shares: dict[str, float] = defaultdict(float)
    for one in stages:
        total = sum(one.values())
        for kind, spent in one.items():
            shares[kind] = max(shares[kind], spent / total)
    shares.pop("other", None)
    largest = set(sorted(shares, key=lambda kind: -shares[kind])[:_KINDS])
    return (*(kind for kind in shares if kind in largest), "other")


def _bars(ones: Sequence[Timing], kinds: Sequence[str]) -> list[Bar]:
    bars = []
    for (name, precision), here in _grouped(
        ones, lambda one: (one.implementation, one.precision)
    ).items():
        for one in here:
            stages = dict(one.stages or {})
            parts = [(kind, stages.pop(kind, 0.0)) for kind in kinds[:-1]]
            parts.append((kinds[-1], sum(stages.values())))
            file = one.file if len(here) > 1 else None
            total = sum(spent for _, spent in parts)
            bars.append(
                Bar(name=series_name(name, precision, file=file), parts=tuple(parts), total=total)
            )
    return sorted(bars, key=lambda bar: bar.total)
