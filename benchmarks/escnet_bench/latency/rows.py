"""The results of the benchmark: rows, ratios, and what was left out."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..percentiles import percentiles
from ..results import without_folders
from .plan import OURS, Cell, Variant

__all__ = ["Found", "LatencyRow", "LeftOut", "Ratio", "Timed", "ratios_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyRow:
    """One implementation in one cell; docs/benchmarks.md says what each is."""

    model: str
    implementation: str
    precision: str
    allocator: str
    categories: int
    chunk: int | None
    repeats: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    first_ms: float
    stages: Mapping[str, float] | None
    peak_memory_bytes: int | None
    device_memory_bytes: int | None
    gflop: float | None
    floor_ms: float | None
    floor_share: float | None
    energy_mj: float | None
    agreement: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """Something that was not measured, and why; a field is None if it applies to all."""

    implementation: str
    precision: str
    categories: int | None
    allocator: str | None
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """How many times as long as ours an implementation takes, median over the rounds."""

    model: str
    implementation: str
    precision: str
    categories: int
    allocator: str
    ours: str
    ratio: float


@dataclass(slots=True)
class Timed:
    """Measurements of an implementation in a cell; ``milliseconds`` by number of the round."""

    first_ms: float
    chunk: int | None
    agreement: float | None
    milliseconds: dict[int, float] = field(default_factory=dict)
    stages: list[Mapping[str, float]] = field(default_factory=list)
    energy_mj: float | None = None

    def percentiles(self) -> tuple[float, float, float]:
        """p50, p95 and p99."""
        return percentiles(self.milliseconds.values())

    def stage_medians(self) -> dict[str, float] | None:
        """Median time of each kind of stage; None if stages were not timed."""
        if not self.stages:
            return None
        return {
            kind: statistics.median([one.get(kind, 0.0) for one in self.stages])
            for kind in self.stages[0]
        }


@dataclass(slots=True)
class Found:
    """All that was measured."""

    timed: dict[Cell, dict[Variant, Timed]] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)

    def leave_out(self, variant: Variant, cell: Cell | None, reason: str) -> None:
        """Record that something was left out; if it is there already, the first reason stays."""
        one = LeftOut(
            implementation=variant.implementation,
            precision=variant.precision,
            categories=None if cell is None else cell.categories,
            allocator=None if cell is None else cell.allocator,
            reason=(reason := without_folders(reason)),  # a library's message may name folders
        )
        if not any(replace(other, reason=reason) == one for other in self.left_out):
            self.left_out.append(one)


def ratios_of(model: str, cell: Cell, timed: Mapping[Variant, Timed]) -> list[Ratio]:
    """Ratios of the other implementations in a cell to ours; empty if ours is not among them."""
    ours = _ours(list(timed))
    if ours is None:
        return []
    base = timed[ours].milliseconds
    found = []
    for variant, one in timed.items():
        each = [took / base[at] for at, took in one.milliseconds.items() if at in base]
        if each:
            ratio = Ratio(
                model=model,
                implementation=variant.implementation,
                precision=variant.precision,
                categories=cell.categories,
                allocator=cell.allocator,
                ours=ours.implementation,
                ratio=statistics.median(each),
            )
            found.append(ratio)
    return found


def _ours(variants: Sequence[Variant]) -> Variant | None:
    for name in OURS:
        for variant in variants:
            if variant.implementation == name:
                return variant
    return None
