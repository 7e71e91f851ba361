"""What is predicted where what is true, added up over images, and the figures that follow.

Definition, that of Detectron2 and CAT-Seg: over all labelled pixels of all images,
``IoU = TP / (TP + FP + FN)`` of each class; mIoU is the mean over the classes that are present in
the ground truth; pixel accuracy is the fraction of labelled pixels that are right. Pixels that are
not labelled count neither for nor against anything. A model may be asked for more categories than
there are classes: a pixel taken for one of these is missed by its class, and they have no IoU.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

__all__ = ["DEFINITION", "MATRIX_LIMIT", "Confusion", "ConfusionCounter", "Scores", "ignore_index"]

DEFINITION: Final = (
    "IoU = TP / (TP + FP + FN) over the labelled pixels of all images; mIoU is the mean over the "
    "classes in the ground truth"
)
#: Classes up to which the whole matrix is kept: 8 MiB of int64 (with more categories than classes,
#: up to as many bytes). Beyond, three counters a class are.
MATRIX_LIMIT: Final = 1024

Labels = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True, kw_only=True, slots=True)
class Confusion:
    """``pixels`` of class ``truth`` that were taken for category ``prediction`` (indices)."""

    truth: int
    prediction: int
    pixels: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Figures over all pixels counted so far.

    Attributes:
        miou: mean IoU over the classes in the ground truth; None if no pixel is labelled.
        pixel_accuracy: fraction of the labelled pixels that are right; None likewise.
        iou: IoU of each class that was asked for; None where the ground truth has no pixel of it,
            whether or not it was predicted: those classes are not in the mean.
        pixels: labelled pixels.
    """

    miou: float | None
    pixel_accuracy: float | None
    iou: tuple[float | None, ...]
    pixels: int


class ConfusionCounter:
    """Counts label maps against the ground truth, image after image.

    Memory: 8·N² bytes for up to :data:`MATRIX_LIMIT` classes, 24·N beyond.

    Args:
        classes: of the ground truth, and the first of the predictions.
        extra: categories behind them that may be predicted as well, and are never right.

    Raises:
        InputError: there are none or too many.
    """

    def __init__(self, classes: int, *, extra: int = 0) -> None:
        if not 1 <= classes <= 65_535:
            raise InputError(f"got {classes} classes; expected 1 to 65535")
        if not 0 <= extra <= 65_535 - classes:
            raise InputError(
                f"got {extra} categories beside {classes} classes; expected 0 to {65_535 - classes}"
            )
        self.classes = classes
        self.categories = classes + extra
        shape = (classes, self.categories)
        self._whole = classes * self.categories <= MATRIX_LIMIT**2
        self._matrix = np.zeros(shape if self._whole else (0, 0), np.int64)
        self._right = np.zeros(classes, np.int64)
        self._truth = np.zeros(classes, np.int64)
        self._predicted = np.zeros(self.categories, np.int64)
        self._unlabelled = np.zeros(1, np.int64)

    @property
    def unlabelled(self) -> int:
        """Pixels that are not labelled."""
        return int(self._unlabelled[0])

    @property
    def matrix(self) -> NDArray[np.int64] | None:
        """Pixels [truth, prediction], a copy; None above :data:`MATRIX_LIMIT` classes."""
        return self._matrix.copy() if self._whole else None

    def add(self, prediction: Labels, truth: Labels) -> None:
        """Count one image.

        Args:
            prediction: uint8 or uint16 [H, W], each a class or one of the extra categories.
            truth: uint8 or uint16 [H, W]; 255 in uint8 and 65535 in uint16 is "not labelled".

        Raises:
            InputError: the shapes differ, a type is another, or a value is no class.
        """
        if prediction.shape != truth.shape:
            raise InputError(
                f"the prediction is {_size(prediction)} and the labels are {_size(truth)} pixels; "
                "expected the same size"
            )
        kept = truth != ignore_index(truth)
        actual = self._checked(truth[kept], "label", self.classes)
        ignore_index(prediction)  # its type is checked
        guess = self._checked(prediction[kept], "predicted class", self.categories)
        self._unlabelled += truth.size - actual.size
        self._truth += np.bincount(actual, minlength=self.classes)
        self._predicted += np.bincount(guess, minlength=self.categories)
        self._right += np.bincount(actual[actual == guess], minlength=self.classes)
        if self._whole:
            pairs = np.bincount(actual * self.categories + guess, minlength=self._matrix.size)
            self._matrix += pairs.reshape(self._matrix.shape)

    def counts(self) -> dict[str, NDArray[np.int64]]:
        """All that was counted, for :meth:`restore`; copies."""
        return {name: array.copy() for name, array in self._arrays().items()}

    def restore(self, counts: Mapping[str, NDArray[np.int64]]) -> None:
        """Take what :meth:`counts` of another counter gave, in place of what was counted here.

        Raises:
            InputError: it is of other numbers of classes or categories.
        """
        mine = self._arrays()
        shapes = {name: array.shape for name, array in mine.items()}
        given = {name: array.shape for name, array in counts.items()}
        if shapes != given or any(array.dtype != np.int64 for array in counts.values()):
            raise InputError(f"got counts of {given}; expected int64 of {shapes}")
        for name, array in mine.items():
            array[...] = counts[name]

    def _arrays(self) -> dict[str, NDArray[np.int64]]:
        return {
            "matrix": self._matrix,
            "right": self._right,
            "truth": self._truth,
            "predicted": self._predicted,
            "unlabelled": self._unlabelled,
        }

    def scores(self, classes: Sequence[int] | None = None) -> Scores:
        """The figures so far; see the definition above.

        Args:
            classes: of these alone, in their order: the mean is over them, and the pixels are those
                whose truth is one of them. What was taken for one of them, whatever it is, lowers
                its IoU as ever. All classes by default.
        """
        chosen = np.arange(self.classes) if classes is None else np.asarray(classes, np.intp)
        rights, truth = self._right[chosen], self._truth[chosen]
        union = truth + self._predicted[chosen] - rights
        iou = [
            int(right) / int(total) if present else None
            for right, total, present in zip(rights, union, truth, strict=True)
        ]
        there = [value for value in iou if value is not None]
        pixels = int(truth.sum())
        return Scores(
            miou=sum(there) / len(there) if there else None,
            pixel_accuracy=int(rights.sum()) / pixels if pixels else None,
            iou=tuple(iou),
            pixels=pixels,
        )

    def worst(self, most: int = 10) -> list[Confusion] | None:
        """The commonest mistakes, most pixels first; None above :data:`MATRIX_LIMIT` classes."""
        if not self._whole:
            return None
        wrong = self._matrix.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:most]
        rows, columns = np.unravel_index(order, wrong.shape)
        return [
            Confusion(truth=int(row), prediction=int(column), pixels=int(wrong[row, column]))
            for row, column in zip(rows, columns, strict=True)
            if wrong[row, column]
        ]

    def _checked(self, values: Labels, what: str, count: int) -> NDArray[np.int64]:
        """The values as int64, which the index of a pair needs."""
        if values.size and values.max() >= count:
            raise InputError(
                f"got the {what} {values.max()}; expected 0 to {count - 1} for {count} "
                f"{'classes' if count == self.classes else 'categories'}"
            )
        return values.astype(np.int64)


def ignore_index(labels: Labels) -> int:
    """The value that means "not labelled" in a label map: 255 or 65535, by its type.

    Raises InputError for a type other than uint8 and uint16.
    """
    if labels.dtype == np.uint8:
        return 255
    if labels.dtype == np.uint16:
        return 65_535
    raise InputError(f"got labels of type {labels.dtype}; expected uint8 or uint16")


def _size(labels: NDArray[np.generic]) -> str:
    return "×".join(str(side) for side in reversed(labels.shape))
