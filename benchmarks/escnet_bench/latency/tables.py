"""Tables of a result, for people."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from rich.console import RenderableType
from rich.table import Table

from ..results import Document

__all__ = ["latency_tables"]

_STAGES: Final = (
    "preprocess",
    "image_encoder",
    "correlation",
    "prompts",
    "sam",
    "fuse",
    "image",
    "text",
    "decoder",
    "sums",
    "upsample_argmax",
)
_WORDS: Final = ("allocator", "implementation", "precision", "reason")
_KEY: Final = ("categories", "allocator", "implementation", "precision")


def latency_tables(document: Document) -> list[RenderableType]:
    """Times with ratios, stages, and what is missing."""
    rows = document["rows"]
    tables: list[RenderableType] = [_times(document), _stages(rows)]
    if document["left_out"]:
        tables.append(_left_out(document["left_out"]))
    return tables


def _times(document: Document) -> Table:
    rows, conditions = document["rows"], document["conditions"]
    ratios = {_key(one): one["ratio"] for one in document["ratios"]}
    peak = conditions["peak"]
    title = f"{rows[0]['model']}, ms an image, {_hardware(conditions)}"
    table = _table(
        title,
        *_KEY,
        "p50",
        "p95",
        "p99",
        "of ours",
        "first s",
        "peak MB",
        "GFLOP",
        "of the floor" if peak is None else f"of {_peak(peak)}",
        "mJ",
        "same labels",
    )
    before = None
    for row in rows:
        cell = row["categories"], row["allocator"]
        if before not in (None, cell):
            table.add_section()
        before = cell
        ratio = ratios.get(_key(row))
        table.add_row(
            *[str(row[key]) for key in _KEY],
            *[f"{row[key]:,.1f}" for key in ("p50_ms", "p95_ms", "p99_ms")],
            "" if ratio is None else f"{ratio:.2f}",
            f"{row['first_ms'] / 1e3:.1f}",
            _number(row["peak_memory_bytes"], 1e-6, 0),
            _number(row["gflop"], 1, 1),
            "" if row["floor_share"] is None else f"{row['floor_share']:.1%}",
            _number(row["energy_mj"], 1, 0),
            "" if row["agreement"] is None else f"{row['agreement']:.2%}",
        )
    return table


def _stages(rows: Iterable[Mapping[str, Any]]) -> Table:
    table = _table("Medians of the stages, ms", *_KEY, *_STAGES)
    for row in rows:
        if row["stages"]:
            spent = [_number(row["stages"].get(kind), 1, 1) for kind in _STAGES]
            table.add_row(*[str(row[key]) for key in _KEY], *spent)
    return table


def _left_out(entries: Iterable[Mapping[str, Any]]) -> Table:
    """Reasons, with all that each of them concerns."""
    table = _table("Left out", "implementation", "categories", "allocator", "reason")
    for one in entries:
        reason = str(one["reason"]).splitlines()[0]
        what = ["all" if one[key] is None else str(one[key]) for key in ("categories", "allocator")]
        table.add_row(f"{one['implementation']} {one['precision']}", *what, reason)
    return table


def _hardware(conditions: Mapping[str, Any]) -> str:
    gpus = ", ".join(conditions["gpus"])
    peak = conditions["peak"]
    if peak is not None and peak["device"] != "cpu":
        return gpus
    return f"{conditions['usable_cores']} cores of {conditions['cpu']}"


def _peak(peak: Mapping[str, Any]) -> str:
    rates = ", ".join(f"{rate:,.0f} GFLOP/s" for rate in peak["gflop_a_second"].values())
    return str(rates)


def _key(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(entry[key] for key in _KEY)


def _number(value: float | None, unit: float, digits: int) -> str:
    return "" if value is None else f"{value * unit:,.{digits}f}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in _WORDS else "right")
    return table
