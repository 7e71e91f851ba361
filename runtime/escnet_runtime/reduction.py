"""Logits of a chunk of categories into what is known of each pixel: the form in NumPy.

It is the specification of the form in C (:mod:`escnet_runtime.native.upsample`), which interpolates
with the same roundings and so gives the same labels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from escnet_runtime.bilinear import Taps

__all__ = ["LARGEST_LOGIT", "NumpyRows", "PixelState"]

Float32 = NDArray[np.float32]

LARGEST_LOGIT = 1e30
"""Logits beyond this are clamped, which keeps differences of two of them finite."""

# Floats of interpolated logits a thread works on at once: 512 KiB, to stay in a core's
# second-level cache. Measured: a quarter of it costs a third more time (more calls), twice as much
# gains nothing.
_BLOCK_FLOATS = 131072
# Categories reduced together, so that what is done once a block and pixel (about ten passes) is
# shared by them: 32 even if that leaves room for few rows; up to 255, the limit of a one-byte code,
# where rows are short.
_BLOCK_CATEGORIES = 32
_MOST_CATEGORIES = 255


@dataclass(frozen=True, kw_only=True, eq=False)
class PixelState:
    """What is known of each pixel of an image [H,W], and where it lies on the grid of the logits.

    ``best``: float32, the largest logit so far; ``total``: float32, the sum of exp(logit - best);
    ``label``: uint8 or uint16, the category of the largest.
    """

    rows: Taps
    columns: Taps
    best: Float32
    total: Float32
    label: NDArray[Any]


class NumpyRows:
    """Reduces rows of an image. Threads may work on different rows at once."""

    least_parallel = _BLOCK_FLOATS
    """Interpolated logits from which on threads pay."""

    def __init__(self, state: PixelState) -> None:
        """Work on ``state``, in place."""
        self._state = state
        self._rows, self._columns = state.rows, state.columns
        self._width = state.best.shape[1]

    @staticmethod
    def prepared(logits: Float32) -> Float32:
        """A copy of logits that interpolation leaves finite, for `reduce`.

        Values far below any real logit, not −inf: interpolating those would give inf − inf.
        """
        limit = LARGEST_LOGIT
        logits = np.nan_to_num(logits, nan=-limit, posinf=limit, neginf=-limit)
        return np.clip(logits, -limit, limit, out=logits)

    def reduce(self, first: int, logits: Float32, rows: range) -> None:
        """Merge prepared logits of categories ``first`` and following into ``rows``."""
        runs = _runs(self._rows.lower, rows)
        categories, together = _block_shape(len(logits), max(map(len, runs)), self._width)
        scratch = _Scratch(categories, together, self._width)
        with np.errstate(under="ignore"):  # exp() of a hopeless category
            for start in range(0, len(logits), categories):
                block = logits[start : start + categories]
                for top, run in self._interpolated_columns(block, runs):
                    for row in range(run.start, run.stop, together):
                        part = slice(row, min(row + together, run.stop))
                        values = scratch.interpolate(*top, self._rows.weight[part])
                        self._merge(first + start, values, part, scratch)

    def confidence(self) -> NDArray[np.float16]:
        """Confidence over the categories so far, [H,W]: the winner's exp(0) / total."""
        return np.reciprocal(self._state.total).astype(np.float16)

    def _interpolated_columns(
        self, block: Float32, runs: list[range]
    ) -> Iterator[tuple[tuple[Float32, Float32], range]]:
        """Each run of rows with the two grid rows it lies between, as (lower, upper − lower)."""
        columns = self._columns
        row, values = -1, block[:, 0]
        for run in runs:
            lower, upper = (int(taps[run.start]) for taps in (self._rows.lower, self._rows.upper))
            below = values if row == lower else self._widen(block[:, lower], columns)
            values = below if upper == lower else self._widen(block[:, upper], columns)
            row = upper
            yield (below, values - below), run

    @staticmethod
    def _widen(grid_row: Float32, columns: Taps) -> Float32:
        """Interpolate [k,l] to [k,W]."""
        left = grid_row.take(columns.lower, axis=1)
        step = grid_row.take(columns.upper, axis=1)
        step -= left
        step *= columns.weight
        left += step
        return left

    def _merge(self, first: int, values: Float32, rows: slice, scratch: "_Scratch") -> None:
        """Merge the values [k,P] of k categories into the running state of P pixels."""
        best = self._state.best[rows].reshape(-1)
        total = self._state.total[rows].reshape(-1)
        label = self._state.label[rows].reshape(-1)
        top = np.maximum.reduce(values, axis=0)
        winner = scratch.first_equal(values, top).astype(label.dtype) + label.dtype.type(first)
        better = (top > best) | ((top == best) & (winner < label))
        np.copyto(label, winner, where=better)
        np.maximum(top, best, out=top)
        best -= top
        np.exp(best, out=best)
        total *= best
        np.subtract(values, top, out=values)
        np.exp(values, out=values)
        total += np.add.reduce(values, axis=0)
        best[:] = top


class _Scratch:
    """Buffers one thread reuses, so that its working set stays in the cache."""

    def __init__(self, categories: int, rows: int, width: int) -> None:
        self._values = np.empty(categories * rows * width, np.float32)
        self._flags = np.empty(categories * rows * width, bool)
        self._numbers = np.arange(categories, dtype=np.uint8)[:, None]

    def interpolate(self, lower: Float32, step: Float32, weight: Float32) -> Float32:
        """``lower + weight * step``: [k,W], [k,W] and [r] give [k, r·W]."""
        shape = (len(lower), len(weight), lower.shape[1])
        values = self._values[: shape[0] * shape[1] * shape[2]].reshape(shape)
        np.multiply(step[:, None], weight[:, None], out=values)
        values += lower[:, None]
        return values.reshape(len(lower), -1)

    def first_equal(self, values: Float32, top: Float32) -> NDArray[np.uint8]:
        """The lowest k with ``values[k] == top``: [k,P] and [P] give [P].

        numpy.argmax along the first axis is 20 times slower. Here every byte becomes k where equal
        and 255 elsewhere, and the smallest is kept.
        """
        flags = self._flags[: values.size].reshape(values.shape)
        codes: NDArray[np.uint8] = np.not_equal(values, top, out=flags).view(np.uint8)
        np.negative(codes, out=codes)
        np.bitwise_or(codes, self._numbers[: len(values)], out=codes)
        lowest: NDArray[np.uint8] = np.minimum.reduce(codes, axis=0)
        return lowest


def _block_shape(categories: int, rows: int, width: int) -> tuple[int, int]:
    """Categories and rows of ``width`` pixels to work on at once."""
    together = max(_BLOCK_CATEGORIES, _BLOCK_FLOATS // (rows * width))
    together = min(together, max(1, _BLOCK_FLOATS // width), categories, _MOST_CATEGORIES)
    return together, min(rows, max(1, _BLOCK_FLOATS // (width * together)))


def _runs(lower: NDArray[np.int64], rows: range) -> list[range]:
    """Ranges of ``rows`` which lie between the same two grid rows."""
    steps = np.flatnonzero(np.diff(lower[rows.start : rows.stop])) + 1 + rows.start
    return [range(a, b) for a, b in pairwise([rows.start, *steps.tolist(), rows.stop])]
