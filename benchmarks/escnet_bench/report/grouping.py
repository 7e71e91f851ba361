"""Groups the timings of all files, and names their lines."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePosixPath
from typing import Final, TypeVar

from .facts import Machine, Result, Timing

__all__ = [
    "KEPT",
    "by_model",
    "grouped",
    "series_name",
    "shortened",
    "timings_of",
    "usual_precision",
]

#: The allocator that gives no memory back to the system.
KEPT: Final = "kept"
_K = TypeVar("_K")
_V = TypeVar("_V")


def timings_of(results: Sequence[Result]) -> list[Timing]:
    """The timings of all files."""
    return [one for result in results for one in result.timings]


def grouped(items: Iterable[_V], key: Callable[[_V], _K]) -> dict[_K, list[_V]]:
    """Items by key, in the order in which they first appear."""
    found: dict[_K, list[_V]] = defaultdict(list)
    for item in items:
        found[key(item)].append(item)
    return dict(found)


def by_model(timings: Sequence[Timing]) -> dict[tuple[str, Machine], list[Timing]]:
    """By model and machine, models by their names."""
    groups = grouped(timings, lambda one: (one.model, one.machine))
    return dict(sorted(groups.items(), key=lambda entry: entry[0][0]))


def usual_precision(timings: Sequence[Timing]) -> tuple[str, str]:
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


def shortened(name: str, most: int) -> str:
    """The name in at most so many characters.

    Its beginning is kept or, of a file's name in brackets, the end: files of one model begin alike.
    """
    if len(name) <= most:
        return name
    head, bracket, file = name.rpartition(" (")
    room = most - len(head) - len(bracket) - 1
    if bracket and name.endswith(")") and room >= 6:
        return f"{head} (…{file[-room:]}"
    return name[: max(most - 1, 1)] + "…"
