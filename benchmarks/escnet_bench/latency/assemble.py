"""Makes the result's rows from the measurements."""

from collections.abc import Callable, Mapping

from .floor import Peak
from .peaks import PeakMemory
from .plan import Cell, Form, Variant
from .rows import Found, LatencyRow, Timed

__all__ = ["assemble_rows"]


def assemble_rows(
    model: str,
    found: Found,
    peaks: Mapping[tuple[Variant, Cell], PeakMemory],
    *,
    gflop: Callable[[Form, int, int | None], float | None],
    peak: Peak | None,
    weight_bytes: int,
) -> list[LatencyRow]:
    """A row for each implementation in each cell, ordered by categories and allocator."""
    rows = []
    for cell in sorted(found.timed, key=lambda one: (one.categories, one.allocator)):
        for variant, timed in found.timed[cell].items():
            operations = None if variant.peer else gflop(variant.form, cell.categories, timed.chunk)
            memory = peaks.get((variant, cell), PeakMemory(host=None, device=None))
            floor = (
                None
                if operations is None or peak is None
                else peak.floor_ms(operations, variant.precision, weight_bytes)
            )
            rows.append(_row(model, cell, variant, timed, operations, floor, memory))
    return rows


def _row(
    model: str,
    cell: Cell,
    variant: Variant,
    timed: Timed,
    operations: float | None,
    floor: float | None,
    memory: PeakMemory,
) -> LatencyRow:
    p50, p95, p99 = timed.percentiles()
    return LatencyRow(
        model=model,
        implementation=variant.implementation,
        precision=variant.precision,
        allocator=cell.allocator,
        categories=cell.categories,
        chunk=timed.chunk,
        repeats=len(timed.milliseconds),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        first_ms=timed.first_ms,
        stages=timed.stage_medians(),
        peak_memory_bytes=memory.host,
        device_memory_bytes=memory.device,
        gflop=operations,
        floor_ms=floor,
        floor_share=None if floor is None else floor / p50,
        energy_mj=timed.energy_mj,
        agreement=timed.agreement,
    )
