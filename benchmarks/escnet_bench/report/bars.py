"""Stacked bars as data: how an image's time is divided among stages."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from .facts import Machine, Result, Timing
from .grouping import KEPT, by_model, grouped, series_name, timings_of

__all__ = ["Bar", "Bars", "Row", "stage_bars"]

_KINDS: Final = 7  # stages of a bar that are drawn apart
#: What stages are called for people.
_STAGES: Final = {
    "image_encoder": "image encoder",
    "sam": "SAM blocks",
    "image": "fusion, image",
    "text": "fusion, text",
    "upsample_argmax": "up-sampling",
}


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


def stage_bars(results: Sequence[Result]) -> list[Bars]:
    """Where the time goes, for each model and machine."""
    found = [
        replace(one, stages={_STAGES.get(kind, kind): spent for kind, spent in one.stages.items()})
        for one in timings_of(results)
        if one.stages and sum(one.stages.values()) > 0
    ]
    kinds = _kinds([one.stages or {} for one in found])
    panels = []
    for (model, machine), every in by_model(found).items():
        # The allocator "kept" is shown only if there is no other: it would double the bars.
        here = [one for one in every if one.allocator != KEPT] or every
        rows = []
        for categories, ones in grouped(here, lambda o: o.categories).items():
            rows.append(Row(categories=categories, bars=tuple(_bars(ones, kinds))))
        rows.sort(key=lambda row: row.categories)
        panels.append(Bars(model=model, machine=machine, kinds=kinds, rows=tuple(rows)))
    return panels


def _kinds(stages: Sequence[Mapping[str, float]]) -> tuple[str, ...]:
    """Kinds with the largest shares, in the order in which they run; others become "other"."""
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
    for (name, precision), here in grouped(
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
