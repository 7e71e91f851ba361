"""The plan of a preparation: class names, files, and how label maps are read."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from escnet_runtime.errors import InputError

__all__ = ["UNLABELLED", "LabelMap", "Pair", "Plan", "Reader", "lookup", "remap"]

#: "Not labelled" in a 16-bit map; written as 255 if the classes fit 8 bits.
UNLABELLED: Final = 65_535
_WRONG: Final = -1

LabelMap = NDArray[np.uint16]
#: Reads a file of labels as classes uint16 [H, W], with UNLABELLED.
Reader = Callable[[Path], LabelMap]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """An image and the file of its labels; both become files with the name ``stem``."""

    stem: str
    image: Path
    labels: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A data set as it was found.

    ``origin`` tells people where the pairs and the names come from; ``read`` gives a pair's labels
    as indices into ``names``; ``warnings`` are sentences on what may be wrong, and ``noticed``
    returns those that reading the labels has added so far. ``details`` are further entries for the
    marker file.

    Attributes:
        shorter_side: px to which longer shorter sides of images and labels are shrunk; None: not
            at all.
        published_side: the shorter side in published figures, if these are of shrunk images.
    """

    dataset: str
    split: str
    names: tuple[str, ...]
    pairs: tuple[Pair, ...]
    read: Reader
    origin: str
    warnings: tuple[str, ...] = ()
    details: Mapping[str, object] = field(default_factory=dict)
    noticed: Callable[[], Iterable[str]] = tuple
    shorter_side: int | None = None
    published_side: int | None = None

    def first(self, count: int | None) -> "Plan":
        """This plan with only the first ``count`` pairs, noted in ``origin``; None: all."""
        there = len(self.pairs)
        if count is None or count >= there:
            return self
        origin = f"the first {count} of {there} images: {self.origin}"
        return replace(self, pairs=self.pairs[:count], origin=origin)

    def shrunk(self, side: int | None) -> "Plan":
        """This plan with shorter sides of at most ``side`` px, noted in ``origin``; None: as is."""
        if side is None:
            return self
        origin = f"{self.origin}, shorter sides shrunk to {side} px"
        return replace(self, shorter_side=side, origin=origin)


def lookup(classes: Mapping[int, int], unlabelled: Iterable[int]) -> NDArray[np.int32]:
    """A table of all 65,536 values for :func:`remap`; values that are not given are errors."""
    table = np.full(65_536, _WRONG, np.int32)
    for value in unlabelled:
        table[value] = UNLABELLED
    for value, index in classes.items():
        table[value] = index
    return table


def remap(values: NDArray[np.generic], table: NDArray[np.int32], path: Path) -> LabelMap:
    """Classes of a map uint8 or uint16 [H, W] by ``table``.

    Raises InputError, naming the file, for a value the data set does not define.
    """
    mapped: NDArray[np.int32] = table[values]
    if mapped.min(initial=0) < 0:
        wrong = sorted({int(value) for value in values[mapped < 0].ravel()})
        raise InputError(
            f"{path} has the values {wrong[:10]}, which this data set does not define: is it of "
            "another data set, or converted already?"
        )
    labels: LabelMap = mapped.astype(np.uint16)
    return labels
