"""Estimates a call's time and memory from the calls so far."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from .plan import Cell, Form, Variant

__all__ = ["Forecast"]

#: Guessed ratio of an implementation's time to ours, used until one of its calls was measured.
_GUESSED: Final = {
    "torch-plain": 3.0,
    "torch": 2.5,
    "openvino": 1.2,
    "torch-naive-ppg": 4.0,
    "torch-cat-seg": 2.5,
}
_GUESSED_COMPILED: Final = 2.5
#: Guessed seconds that a first call with compilation takes beyond an ordinary one, until measured.
_GUESSED_COMPILATION: Final = 45.0
_GUESSED_DYNAMIC: Final = 150.0
_GUESSED_OPENING: Final = 8.0
#: CAT-Seg pads to this number of categories, so fewer take no less memory (measured: 2.0 GB at 19,
#: 3.0 GB at 150).
_PADDED: Final = 128
#: Under the default allocator time grows faster than work, because large allocations get slower.
_GROWTH: Final = 1.25


@dataclass(slots=True)
class Forecast:
    """Estimates calls from earlier ones.

    Args:
        work: (form, categories) → operations of an image, in any unit.
    """

    work: Callable[[Form, int], float]
    _calls: dict[tuple[Variant, Cell], float] = field(default_factory=dict)
    _openings: dict[tuple[Variant, Cell], float] = field(default_factory=dict)
    _grown: dict[tuple[Variant, int], int] = field(default_factory=dict)
    _ordinary: set[Variant] = field(default_factory=set)

    def learn_call(self, variant: Variant, cell: Cell, seconds: float) -> None:
        """Record the time of an ordinary call."""
        self._calls[variant, cell] = seconds
        self._ordinary.add(variant)

    def learn_opening(
        self, variant: Variant, cell: Cell, seconds: float, grown_bytes: int | None
    ) -> None:
        """Record a first call: its time, loading included, and its memory beyond what it loaded."""
        ordinary = self.call(variant, cell)
        if not variant.compiled and (ordinary is None or seconds < ordinary):
            self._calls[variant, cell] = seconds
        self._openings[variant, cell] = seconds
        if grown_bytes is not None:
            self._grown[variant, cell.categories] = grown_bytes

    def call(self, variant: Variant, cell: Cell) -> float | None:
        """Seconds of an ordinary call; None if nothing was measured to estimate it from."""
        known = {at: took for (one, at), took in self._calls.items() if one == variant}
        if cell in known:
            return known[cell]
        if known:
            nearest = min(known, key=lambda at: self._distance(at, cell))
            return known[nearest] * self._scale(variant, nearest, cell)
        return self._guessed(variant, cell)

    def opening(self, variant: Variant, cell: Cell) -> float | None:
        """Seconds of the first call in a cell; None as for :meth:`call`."""
        ordinary = self.call(variant, cell)
        if ordinary is None:
            return None
        known = {at: took for (one, at), took in self._openings.items() if one == variant}
        if variant.dynamic and any(at.allocator == cell.allocator for at in known):
            return ordinary  # this allocator's process has compiled it already
        if variant.compiled:
            guessed = _GUESSED_DYNAMIC if variant.dynamic else _GUESSED_COMPILATION
            return ordinary + (list(known.values())[-1] if known else guessed)
        return ordinary + (0.0 if known else _GUESSED_OPENING)

    def called(self, variant: Variant) -> bool:
        """Whether an ordinary call was measured, and not only a first one."""
        return variant in self._ordinary

    def memory(self, variant: Variant, categories: int) -> float | None:
        """Bytes that a call needs beyond what is loaded; None if not known.

        In proportion to the categories, or by the line through two measured numbers of categories
        if that is less: part of the memory does not depend on the categories.
        """
        known = {n: size for (one, n), size in self._grown.items() if one == variant}
        if not known:
            return None
        nearest = min(known, key=lambda n: abs(n - categories))
        if not variant.torch:  # others take all categories in one batch
            return known[nearest]
        padded = _PADDED if variant.peer else 0
        in_proportion = known[nearest] * max((padded + categories) / (padded + nearest), 1.0)
        few, many = min(known), max(known)
        if few == many or known[few] >= known[many] or categories <= many:
            return in_proportion
        each = (known[many] - known[few]) / (many - few)
        return min(known[many] + each * (categories - many), in_proportion)

    def _distance(self, at: Cell, cell: Cell) -> tuple[bool, float]:
        larger, smaller = max(at.categories, cell.categories), min(at.categories, cell.categories)
        return at.allocator != cell.allocator, larger / smaller

    def _scale(self, variant: Variant, at: Cell, cell: Cell) -> float:
        work = self.work(variant.form, cell.categories) / self.work(variant.form, at.categories)
        slower = variant.torch and cell.allocator == "default" and work > 1
        return work * (_GROWTH if slower else 1.0)

    def _guessed(self, variant: Variant, cell: Cell) -> float | None:
        """A guess from our own time, if that was measured."""
        if variant.ours:
            return None
        ours = [self.call(one, cell) for one in {one for one, _ in self._calls if one.ours}]
        took = [one for one in ours if one is not None]
        if not took:
            return None
        usual = _GUESSED_COMPILED if variant.compiled else _GUESSED[variant.implementation]
        return usual * min(took)
