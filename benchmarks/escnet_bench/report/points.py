"""Panels of points: accuracy against latency."""

import math
from collections.abc import Callable, Sequence

from .colours import Styles
from .facts import Accuracy, Result, Timing
from .grouping import KEPT, by_model, grouped, series_name, timings_of, usual_precision
from .panels import Panel, Series, log_axis, share_axis

__all__ = ["accuracy_panels", "same_panels"]


def accuracy_panels(results: Sequence[Result], styles: Styles) -> tuple[list[Panel], list[Panel]]:
    """mIoU against latency, and labels equal to float32 PyTorch's against latency."""
    timed = [
        (one, milliseconds, note)
        for result in results
        for one in result.accuracies
        for milliseconds, note in _times(one, timings_of(results))
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
    groups = grouped(found, lambda entry: (entry[0].model, entry[0].machine, _data(entry[0])))
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
                x=log_axis([m for _, m, *_ in here], "ms an image, median"),
                y=share_axis([share for *_, share, _ in here], label),
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
        for one in timings_of(results)
        if one.agreement is not None and one.p50_ms and one.allocator != KEPT
    ]
    panels = []
    for (model, machine), every in by_model(found).items():
        counts = grouped(every, lambda one: one.categories)
        count = max(counts, key=lambda n: (len(counts[n]), n))
        here = counts[count]
        usual, note = usual_precision(here)
        runs = grouped(here, lambda one: (one.implementation, one.precision))
        series = [
            Series(
                name=series_name(
                    one.implementation,
                    None if one.precision == usual else one.precision,
                    file=one.file if len(runs[one.implementation, one.precision]) > 1 else None,
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
                x=log_axis([one.p50_ms or 0.0 for one in here], "ms an image, median"),
                y=share_axis([one.agreement or 0.0 for one in here], "labels equal to ours"),
                series=tuple(series),
                lines=False,
            )
        )
    return panels
