"""What the report takes from the parts of ``gpu-check``."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from .facts import Result, Timing
from .opened import Opened
from .schema import GpuLatencyRow, GpuMemoryRow, GpuPlan, GpuStagesRow, taken

__all__ = ["gpu_latency", "gpu_memory", "gpu_stages"]


def gpu_latency(opened: Opened, result: Result) -> Result:
    """Times of an image; ours run on the backend of the plan."""
    backend = _backend(opened)
    timings = []
    for row, _ in opened.each(GpuLatencyRow):
        # "escnet" is the bundle on the backend of the plan, "torch eager fp16" a model in PyTorch.
        ours = row.implementation == "escnet"
        name, _, last = row.implementation.rpartition(" ")
        named = bool(name) and last in {"fp16", "fp32", "bf16"}
        timings.append(
            Timing(
                **opened.where,
                model=row.model,
                implementation=backend if ours else name if named else row.implementation,
                precision=last if named and not ours else row.precision,
                categories=row.categories,
                repeats=row.repeats,
                p50_ms=row.p50_ms,
                p95_ms=row.p95_ms,
                p99_ms=row.p99_ms,
            )
        )
    return dataclasses.replace(result, timings=tuple(timings))


def gpu_stages(opened: Opened, result: Result) -> Result:
    """Times of our stages."""
    rows = ((row, {"stages": row.stages}) for row, _ in opened.each(GpuStagesRow))
    return dataclasses.replace(result, timings=_ours(opened, rows))


def gpu_memory(opened: Opened, result: Result) -> Result:
    """What we take of the device's memory."""
    rows = (
        (row, {"device_memory_bytes": row.measured_bytes}) for row, _ in opened.each(GpuMemoryRow)
    )
    return dataclasses.replace(result, timings=_ours(opened, rows))


def _ours(
    opened: Opened, rows: Iterable[tuple[GpuStagesRow | GpuMemoryRow, dict[str, Any]]]
) -> tuple[Timing, ...]:
    """Rows of our own pipeline, each with what it tells of it."""
    backend = _backend(opened)
    return tuple(
        Timing(
            **opened.where,
            model=row.model,
            implementation=backend,
            precision=row.precision,
            categories=row.categories,
            **told,
        )
        for row, told in rows
    )


def _backend(opened: Opened) -> str:
    return taken(opened.document.get("plan"), GpuPlan, f"{opened.file}: plan").backend
