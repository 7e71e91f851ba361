"""What a preparation is going to write: class names, files, and how its label maps are read."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from escnet_runtime.errors import InputError

__all__ = ["UNLABELLED", "LabelMap", "Pair", "Plan", "Reader", "lookup", "remap"]

#: In a map of 16 bits; written as 255 where the classes fit 8 bits.
UNLABELLED: Final = 65_535
_WRONG: Final = -1

LabelMap = NDArray[np.uint16]
#: From a file of labels to classes uint16 [H, W], with UNLABELLED.
Reader = Callable[[Path], LabelMap]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """An image and the file its labels come from; both become files of the name ``stem``."""

    stem: str
    image: Path
    labels: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A data set as it was found.

    ``origin`` says where the pairs and the names come from, for people; ``read`` gives a pair's
    labels as indices into ``names``; ``warnings`` is what may be wrong with it, in sentences, and
    ``noticed`` gives what else reading the labels has shown so far. ``details`` is more for the
    marker file.

    Attributes:
        shorter_side: px to which images and labels with a longer one are shrunk; None: none are.
        published_side: the same of published figures, where they are of shrunk images.
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
        """The first so many pairs alone, which ``origin`` then says; None: all."""
        there = len(self.pairs)
        if count is None or count >= there:
            return self
        origin = f"the first {count} of {there} images: {self.origin}"
        return replace(self, pairs=self.pairs[:count], origin=origin)

    def shrunk(self, side: int | None) -> "Plan":
        """With a shorter side of at most so many px, which ``origin`` then says; None: as it is."""
        if side is None:
            return self
        origin = f"{self.origin}, shorter sides shrunk to {side} px"
        return replace(self, shorter_side=side, origin=origin)


def lookup(classes: Mapping[int, int], unlabelled: Iterable[int]) -> NDArray[np.int32]:
    """A table of all 65,536 values for :func:`remap`: those given nowhere are errors."""
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
