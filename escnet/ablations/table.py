"""Results as a Markdown table, from as many as there are."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .run import Result
from .variants import BASE, CORRELATION, PARTS, VARIANTS, Variant

__all__ = ["Row", "rows_of", "table_of"]

_HEAD: Final = """| | mIoU | against the base | mIoU, held-out names | seeds | training |
|---|---|---|---|---|---|"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Figures of one variant, in percent.

    Attributes:
        variant: which.
        miou: of each seed, over all names of the scenes.
        held_out: likewise over the names that training never sees.
        against: mIoU minus that of the base, for each seed that both have. The two saw the same
            scenes, so differences vary less than the figures do.
        seconds: mean time of the training; None if there was none.
    """

    variant: Variant
    miou: tuple[float, ...]
    held_out: tuple[float, ...]
    against: tuple[float, ...]
    seconds: float | None


def rows_of(results: Sequence[Result]) -> dict[str, Row]:
    """A row for each variant that has a result, in the table's order."""
    by_variant: dict[str, dict[int | None, Result]] = {}
    for one in results:
        by_variant.setdefault(one["variant"], {})[one["seed"]] = one
    base = by_variant.get(BASE.name, {})
    rows = {}
    for variant in VARIANTS:
        own = by_variant.get(variant.name, {})
        if not own:
            continue
        if variant.name == CORRELATION:  # it has no seed, and stands against each of the base's
            pairs = [(next(iter(own.values())), other) for other in base.values()]
        else:
            pairs = [(one, base[seed]) for seed, one in own.items() if seed in base]
        seconds = [one["training_seconds"] for one in own.values()]
        rows[variant.name] = Row(
            variant=variant,
            miou=tuple(_percent(one, "miou") for one in own.values()),
            held_out=tuple(_percent(one, "miou_held_out") for one in own.values()),
            against=tuple(_percent(one, "miou") - _percent(other, "miou") for one, other in pairs),
            seconds=None if None in seconds else statistics.mean(seconds),
        )
    return rows


def table_of(results: Sequence[Result]) -> str:
    """The table, what it was measured under, and what is still missing; ends with a newline."""
    if not results:
        return "The runs have not been made yet.\n"
    rows = rows_of(results)
    lines = [_HEAD, *_lines(rows)]
    missing = [variant.name for variant in VARIANTS if variant.name not in rows]
    if missing:
        lines += ["", f"Not run yet: {', '.join(missing)}."]
    return "\n".join([*lines, "", _conditions(results)]) + "\n"


def _lines(rows: Mapping[str, Row]) -> Iterator[str]:
    for name in (CORRELATION, BASE.name):
        if name in rows:
            yield _line(rows[name].variant.label, rows[name])
    for part, label in PARTS.items():
        varied = [row for row in rows.values() if row.variant.part == part]
        if varied:
            yield f"| **{part}** | | | | | |"
            yield from (_line(row.variant.label, row) for row in varied)
            if BASE.name in rows:
                yield _line(f"*{label}*", rows[BASE.name])


def _line(label: str, row: Row) -> str:
    base = row.variant is BASE
    cells = (
        label,
        spread(row.miou),
        "" if base else spread(row.against, sign=True),
        spread(row.held_out),
        "" if row.variant.name == CORRELATION else str(len(row.miou)),
        "" if row.seconds is None else f"{row.seconds:.0f} s",
    )
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def spread(values: Sequence[float], *, sign: bool = False) -> str:
    """Mean ± standard deviation (of a sample, n - 1); without the latter for a single value."""
    if not values:
        return "–"
    mean = statistics.mean(values)
    text = f"{mean:+.1f}" if sign else f"{mean:.1f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.1f}"


def _percent(result: Result, figure: str) -> float:
    return 100.0 * float(result["figures"][figure])


def _conditions(results: Sequence[Result]) -> str:
    given: Mapping[str, Any] = results[0]["conditions"]
    budget, categories = given["budget"], given["budget"]["categories"]
    where = {
        f"{one['provenance']['device']}, {one['provenance']['threads']} threads, "
        f"torch {one['provenance']['torch']}, commit {str(one['provenance']['commit'])[:7]}"
        + (" with changes" if one["provenance"]["changed"] else "")
        for one in results
    }
    return (
        f"Each run: {budget['steps']} steps of {budget['batch']} scenes with "
        f"{categories['per_image']} categories (every {categories['wide_every']}th with "
        f"{categories['wide']}), from the same CLIP ({given['clip_sha256'][:12]}) and SAM "
        f"({given['sam_sha256'][:12]}). Measured on {budget['count']} scenes of "
        f"`{budget['scenes']}`, each asked for all {given['names']} names. mIoU in percent; "
        "mean ± standard deviation over the seeds, of the differences over seeds that share "
        f"their scenes. {'; '.join(sorted(where))}."
    )
