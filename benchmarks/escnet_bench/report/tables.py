"""How many times as fast as a baseline each implementation is, as data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from .facts import Machine, Ratio, Result, Timing
from .grouping import series_name

__all__ = ["RatioTable", "ratio_tables"]

#: Baselines that are taken unasked, the first that was measured.
_USUAL: Final = ("torch", "torch eager", "torch-plain")
_PRECISE: Final = {"fp32": 0, "bf16": 1, "fp16": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class RatioTable:
    """How many times as fast as the baseline; None where one of both was not measured.

    ``baseline`` is None if none of this model was measured on this machine.
    """

    model: str
    machine: Machine
    baseline: str | None
    categories: tuple[int, ...]
    rows: tuple[tuple[str, tuple[float | None, ...], tuple[float | None, ...]], ...]


def ratio_tables(results: Sequence[Result], baseline: str | None = None) -> list[RatioTable]:
    """A table for each model and machine, rows by implementation, columns by categories.

    Where a file has ratios of the rounds, they are taken: they hold where the machine's speed
    moved meanwhile. Else medians are divided.

    Args:
        results: the files.
        baseline: an implementation; by default eager PyTorch, in the form that is there.
    """
    groups: dict[tuple[str, Machine], list[Timing]] = {}
    for timing in (one for result in results for one in result.timings if one.p50_ms):
        groups.setdefault((timing.model, timing.machine), []).append(timing)
    ratios = _ratios(results)
    ordered = sorted(groups.items(), key=lambda entry: (entry[0][0], entry[0][1].label))
    return [
        _table(model, machine, timings, ratios, baseline) for (model, machine), timings in ordered
    ]


def _ratios(results: Sequence[Result]) -> Mapping[tuple[object, ...], Ratio]:
    return {
        (one.file, one.model, one.implementation, one.precision, one.categories, one.allocator): one
        for result in results
        for one in result.ratios
    }


def _table(
    model: str,
    machine: Machine,
    timings: Sequence[Timing],
    ratios: Mapping[tuple[object, ...], Ratio],
    wanted: str | None,
) -> RatioTable:
    names = {one.implementation for one in timings}
    baseline = next((name for name in ((wanted,) if wanted else _USUAL) if name in names), None)
    columns = tuple(sorted({one.categories for one in timings}))
    rows = []
    for label, own in _labelled(timings).items():
        speed, times = [], []
        for count in columns:
            here = next((one for one in own if one.categories == count), None)
            base = None if here is None else _base(timings, baseline, here)
            times.append(None if here is None else here.p50_ms)
            speed.append(None if here is None or base is None else _faster(here, base, ratios))
        rows.append((label, tuple(speed), tuple(times)))
    return RatioTable(
        model=model, machine=machine, baseline=baseline, categories=columns, rows=tuple(rows)
    )


def _labelled(timings: Sequence[Timing]) -> dict[str, list[Timing]]:
    """Rows by their names; memory that is kept comes behind, and the fastest first."""
    groups: dict[tuple[str, str, str], list[Timing]] = {}
    for one in timings:
        key = (one.implementation, one.precision, one.allocator or "default")
        groups.setdefault(key, []).append(one)
    ordered = sorted(
        groups.items(), key=lambda entry: (entry[0][2], min(o.p50_ms or 0.0 for o in entry[1]))
    )
    rows: dict[str, list[Timing]] = {}
    for (name, precision, allocator), own in ordered:
        apart = len({one.categories for one in own}) < len(own)
        for one in own:
            label = series_name(name, precision, allocator, one.file if apart else None)
            rows.setdefault(label, []).append(one)
    return rows


def _base(timings: Sequence[Timing], baseline: str | None, here: Timing) -> Timing | None:
    """The baseline of the same run: at the same precision, else at its highest.

    Not of another file: it may be of another picture, and the machine may have been slower then.
    """
    found = [
        one
        for one in timings
        if one.implementation == baseline
        and (one.file, one.categories, one.allocator)
        == (here.file, here.categories, here.allocator)
    ]
    found.sort(key=lambda one: (one.precision != here.precision, _PRECISE.get(one.precision, 9)))
    return found[0] if found else None


def _faster(here: Timing, base: Timing, ratios: Mapping[tuple[object, ...], Ratio]) -> float | None:
    """By the ratios of single rounds if the file has them, else by medians."""
    ours, theirs = _ratio(here, ratios), _ratio(base, ratios)
    if ours and theirs and ours.ours == theirs.ours and ours.ratio and theirs.ratio:
        return theirs.ratio / ours.ratio
    return base.p50_ms / here.p50_ms if base.p50_ms and here.p50_ms else None


def _ratio(one: Timing, ratios: Mapping[tuple[object, ...], Ratio]) -> Ratio | None:
    return ratios.get(
        (one.file, one.model, one.implementation, one.precision, one.categories, one.allocator)
    )
