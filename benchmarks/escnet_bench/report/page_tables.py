"""The tables of the page."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from .facts import Accuracy, Machine, Result
from .fragments import box, table
from .tables import RatioTable
from .texts import text

__all__ = [
    "accuracy_table",
    "conditions_of",
    "files_table",
    "left_out_table",
    "machines_table",
    "operations_table",
    "ratio_table",
    "stages_table",
    "times_table",
]

_SHOWN: Final = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "torch", "numpy")


def ratio_table(one: RatioTable) -> str:
    """How many times as fast as the baseline, the time below it."""
    head = ["categories", *(f"{count:,}" for count in one.categories)]
    best = [
        min((time for row in one.rows if (time := row[2][c]) is not None), default=None)
        for c in range(len(one.categories))
    ]
    rows = []
    for name, speed, times in one.rows:
        cells = [box(name, "th", "left")]
        for ratio, milliseconds, fastest in zip(speed, times, best, strict=True):
            shown = None if milliseconds is None else _time(milliseconds)
            kind = "best" if milliseconds is not None and milliseconds == fastest else ""
            if ratio is None:
                cells.append(box(shown, kind=kind))
            else:
                cells.append(box(f"{ratio:.2f} ×", kind=kind, small=shown or ""))
        rows.append(cells)
    against = (
        f"Baseline: {text(one.baseline)}."
        if one.baseline is not None
        else "No baseline was measured here, so these are times alone."
    )
    return (
        f'<h3>{text(one.model)} <span class="soft">{text(one.machine.label)}</span></h3>'
        f'<p class="soft">{against} Bold: the fastest.</p>{table(head, rows)}'
    )


def _time(milliseconds: float) -> str:
    return f"{milliseconds / 1e3:,.2f} s" if milliseconds >= 1e3 else f"{milliseconds:.1f} ms"


def times_table(results: Sequence[Result]) -> str:
    """Every row that has a time."""
    head = ["model", "implementation", "machine", "categories", "p50", "p95", "p99", "first call"]
    head += ["calls", "chunk", "GFLOP", "floor", "of floor", "mJ", "equal labels", "file"]
    rows = []
    for one in (one for result in results for one in result.timings if one.p50_ms is not None):
        name = f"{one.implementation} {one.precision}"
        if one.allocator:
            name += f", {one.allocator}"
        times = [
            None if value is None else _time(value)
            for value in (one.p50_ms, one.p95_ms, one.p99_ms, one.first_ms)
        ]
        floor = None if one.floor_ms is None else _time(one.floor_ms)
        rows.append(
            [
                box(one.model, "th", "left"),
                box(name, kind="left"),
                box(one.machine.label, kind="left"),
                box(one.categories),
                *map(box, times),
                box(one.repeats),
                box(one.chunk),
                box(_format(one.gflop, ",.1f")),
                box(floor),
                box(_format(one.floor_share, ".1%")),
                box(_format(one.energy_mj, ",.1f")),
                box(_format(one.agreement, ".3%")),
                box(one.file, kind="left"),
            ]
        )
    return table(head, rows, left=3)


def _format(value: float | None, how: str) -> str | None:
    return None if value is None else format(value, how)


def accuracy_table(rows: Sequence[Accuracy]) -> str:
    """mIoU, agreement, flips and the farthest stage."""
    head = ["model", "what", "data", "mIoU", "of PyTorch", "difference, points", "pixels right"]
    head += ["equal labels", "flipped prompts", "by block", "farthest stage", "relative L2", "file"]
    cells = []
    for one in rows:
        difference = (
            None
            if one.miou is None or one.reference_miou is None
            else f"{100 * (one.miou - one.reference_miou):+.3f}"
        )
        flips = one.prompt_flips
        total = None if flips is None else f"{sum(flips):,}"
        if total is not None and one.prompts:
            total += f" of {one.prompts:,}"
        error = "" if one.worst_stage is None else "not finite"
        if one.worst_stage_l2 is not None:
            error = f"{one.worst_stage_l2:.1e}"
        cells.append(
            [
                box(one.model, "th", "left"),
                box(
                    f"{one.implementation} {one.precision}",
                    kind="left",
                    small=one.note or "",
                ),
                box(
                    one.dataset,
                    kind="left",
                    small=f"{one.images} images, {one.categories} categories",
                ),
                box(_format(one.miou, ".2%")),
                box(_format(one.reference_miou, ".2%")),
                box(difference),
                box(_format(one.pixel_accuracy, ".2%")),
                box(_format(one.pixel_agreement, ".3%")),
                box(total),
                box(None if flips is None or len(flips) < 2 else " / ".join(map(str, flips))),
                box(one.worst_stage),
                box(error or None),
                box(one.file, kind="left"),
            ]
        )
    return table(head, cells, left=3)


def stages_table(rows: Sequence[Accuracy]) -> str:
    """Relative L2 and cosine of each stage, a column for each row that has them."""
    with_stages = [(one, one.stages) for one in rows if one.stages]
    names = list(dict.fromkeys(name for _, stages in with_stages for name in stages))
    head = ["stage", *(f"{one.implementation} {one.precision}" for one, _ in with_stages)]
    cells = []
    for name in names:
        row = [box(name, "th", "left")]
        for _, stages in with_stages:
            if name not in stages:
                row.append(box(None))
                continue
            error, cosine = stages[name]
            shown = "not finite" if error is None else f"{error:.1e}"
            row.append(box(shown, small="" if cosine is None else f"cosine {cosine:.6f}"))
        cells.append(row)
    cells.append([box("file", "th", "left"), *(box(one.file) for one, _ in with_stages)])
    return table(head, cells)


def operations_table(results: Sequence[Result]) -> str:
    """GFLOP by model and form, a column for each number of categories."""
    every = [one for result in results for one in result.operations]
    counts = sorted({one.categories for one in every})
    rows = []
    for model, form, file in dict.fromkeys((o.model, o.form, o.file) for o in every):
        found = {o.categories: o for o in every if (o.model, o.form, o.file) == (model, form, file)}
        cells = [box(model, "th", "left"), box(form, kind="left")]
        for count in counts:
            one = found.get(count)
            if one is None:
                cells.append(box(None))
            else:
                share = "" if form == "plain" else f"{one.of_plain:.2f} of plain"
                cells.append(box(f"{one.gflop:,.1f}", small=share))
        rows.append([*cells, box(file, kind="left")])
    note = (
        '<p class="soft">GFLOP. Plain: nothing is shared between categories. Shipped: what '
        "categories have in common is computed once.</p>"
    )
    head = ["model", "form", *(f"{count} categories" for count in counts), "file"]
    return note + table(head, rows, left=2)


def left_out_table(results: Sequence[Result]) -> str:
    """What, why, where."""
    rows = [
        [
            box(one.what, "th", "left"),
            box(one.reason, kind="left wrap"),
            box(one.machine.label, kind="left"),
            box(one.file, kind="left"),
        ]
        for result in results
        for one in result.left_out
    ]
    return table(["what", "why", "machine", "file"], rows, left=4)


def machines_table(results: Sequence[Result]) -> str:
    """One row for each machine and day, with its conditions."""
    head = ["machine", "day", "processor", "cores", "memory", "GPU and driver", "system"]
    head += ["libraries", "files"]
    groups: dict[Machine, list[Result]] = {}
    for result in results:
        groups.setdefault(result.machine, []).append(result)
    rows = []
    for machine, here in groups.items():
        first = here[0].conditions
        memory = first.get("memory_bytes")
        libraries = _libraries(here)
        rows.append(
            [
                box(machine.name, "th", "left"),
                box(machine.day, kind="left"),
                box(machine.cpu, kind="left"),
                box(machine.cores),
                box(None if memory is None else f"{memory / 2**30:.0f} GiB"),
                box("; ".join(first.get("gpus") or ()) or "none", kind="left"),
                box(first.get("system"), kind="left"),
                box(libraries or None, kind="left wrap"),
                box(len(here)),
            ]
        )
    return table(head, rows, left=3)


def _libraries(results: Sequence[Result]) -> str:
    """Versions; several where the files differ."""
    parts = []
    for name in _SHOWN:
        versions = {
            packages[name]
            for result in results
            if (packages := result.conditions.get("packages") or {}) and name in packages
        }
        if versions:
            parts.append(f"{name} {' and '.join(sorted(versions))}")
    return ", ".join(parts)


def files_table(results: Sequence[Result]) -> str:
    """A row for each file, with remarks."""
    rows = [
        [
            box(result.file, "th", "left"),
            box(result.benchmark, kind="left"),
            box(result.machine.label, kind="left"),
            box("; ".join(result.remarks) or "nothing to remark", kind="left wrap"),
        ]
        for result in results
    ]
    return table(["file", "benchmark", "machine", "remarks"], rows, left=4)


def conditions_of(result: Result) -> str:
    """All conditions in a file, folded."""
    given = {**result.conditions, "notes in the file": "; ".join(result.notes) or None}
    entries = "".join(
        f"<dt>{text(key.replace('_', ' '))}</dt><dd>{text(_shown(value))}</dd>"
        for key, value in given.items()
        if value not in (None, (), {})
    )
    return f"<details><summary>{text(result.file)}</summary><dl>{entries}</dl></details>"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {entry}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
