"""From logits on a small grid to a label and a confidence for every pixel of the image.

Logits are interpolated bilinearly to the size of the image and reduced over the categories as
they are made, so categories × height × width never exists in memory.

Bilinear interpolation follows PyTorch's ``align_corners=False``: output pixel ``i`` of ``n`` lies
at ``(i + 0.5) * l / n - 0.5`` on a grid of ``l`` cells, clamped to ``[0, l - 1]``. A value is
``a + w * (b - a)``, along the width first and then along the height, in float32.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from escnet_runtime.errors import InputError

__all__ = ["Taps", "UpsampleArgmax", "bilinear_taps", "resize_bilinear"]

Float32 = NDArray[np.float32]

# Floats of interpolated logits a thread works on at once: 512 KiB, to stay in a core's
# second-level cache. Measured: a quarter of it costs a third more time (more calls), twice as much
# gains nothing.
_BLOCK_FLOATS = 131072
# Categories reduced together, so that what is done once a block and pixel (about ten passes) is
# shared by them: 32 even if that leaves room for few rows; up to 255, the limit of a one-byte code,
# where rows are short.
_BLOCK_CATEGORIES = 32
_MOST_CATEGORIES = 255
# Past this the threads wait for memory and for each other's Python.
_MAX_THREADS = 8
# Logits beyond this are clamped, which keeps differences of two of them finite.
_LARGEST_LOGIT = 1e30


@dataclass(frozen=True, kw_only=True, eq=False)
class Taps:
    """Where along one axis each output pixel lies between two cells of the grid.

    ``lower`` and ``upper`` are int64 [n] indices of cells, ``weight`` float32 [n] in [0, 1] is the
    share of ``upper``.
    """

    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    weight: Float32


def bilinear_taps(cells: int, pixels: int) -> Taps:
    """Taps that interpolate ``cells`` values to ``pixels`` values (``align_corners=False``)."""
    position = (np.arange(pixels) + 0.5) * (cells / pixels) - 0.5
    position = position.clip(0, cells - 1)
    lower = position.astype(np.int64)
    return Taps(
        lower=lower,
        upper=np.minimum(lower + 1, cells - 1),
        weight=(position - lower).astype(np.float32),
    )


def resize_bilinear(logits: Float32, height: int, width: int) -> Float32:
    """Interpolate float32 [n,h,w] to [n,height,width]: the plain form, which holds everything."""
    columns, rows = bilinear_taps(logits.shape[2], width), bilinear_taps(logits.shape[1], height)
    left = logits[:, :, columns.lower]
    wide = left + columns.weight * (logits[:, :, columns.upper] - left)
    top = wide[:, rows.lower]
    result: Float32 = top + rows.weight[:, None] * (wide[:, rows.upper] - top)
    return result


class UpsampleArgmax:
    """Label and confidence of each pixel, fed with logits a chunk of categories at a time.

    Labels do not depend on how the categories are cut into chunks nor on their order; equal logits
    go to the lowest category. The confidence is the softmax over all categories of the winner's
    interpolated logit; chunking changes it by float32 rounding only. NaN loses to everything (a
    pixel where every category is NaN gets label 0 and confidence 1 / classes); a NaN cell spoils
    the pixels interpolated from it. Infinities count as ±1e30.

    Not safe to feed from several threads at once; it uses threads of its own.
    """

    def __init__(
        self,
        height: int,
        width: int,
        logits_shape: tuple[int, int],
        classes: int,
        *,
        threads: int | None = None,
    ) -> None:
        """Prepare for ``classes`` categories whose logits are [n, *logits_shape].

        ``threads`` defaults to the processors this machine has, at most 8.
        """
        if min(height, width, classes, *logits_shape) < 1:
            raise InputError(
                f"got an image of {height}×{width} pixels, logits of {logits_shape} and {classes} "
                "categories; every one of them must be at least 1"
            )
        if classes > 65536:
            raise InputError(f"got {classes} categories; a 16-bit label map holds at most 65536")
        self._height, self._width = height, width
        self._grid = logits_shape
        self._rows = bilinear_taps(logits_shape[0], height)
        self._columns = bilinear_taps(logits_shape[1], width)
        self._runs = _runs(self._rows.lower)
        self._threads = threads or min(os.cpu_count() or 1, _MAX_THREADS)
        self._added = np.zeros(classes, bool)
        self._best = np.full((height, width), -np.inf, np.float32)
        self._total = np.zeros((height, width), np.float32)  # Σ exp(logit − best) so far
        self._label = np.zeros((height, width), np.uint8 if classes <= 256 else np.uint16)

    def add(self, first_category: int, logits: Float32) -> None:
        """Take the logits, float32 [n,l,l], of categories ``first_category`` to ``+ n - 1``.

        Raises InputError for a wrong type or shape, and for categories out of range or given twice.
        """
        self._check(first_category, logits)
        # Values far below any real logit, not −inf: interpolating those would give inf − inf.
        limit = _LARGEST_LOGIT
        logits = np.nan_to_num(logits, nan=-limit, posinf=limit, neginf=-limit)
        np.clip(logits, -limit, limit, out=logits)
        bands = _split(len(self._runs), 4 * self._threads)
        if self._threads == 1 or len(bands) == 1 or self._label.size * len(logits) < _BLOCK_FLOATS:
            self._reduce_band(first_category, logits, range(len(self._runs)))
        else:
            with ThreadPoolExecutor(self._threads) as pool:
                for done in [
                    pool.submit(self._reduce_band, first_category, logits, b) for b in bands
                ]:
                    done.result()
        self._added[first_category : first_category + len(logits)] = True

    def result(self) -> tuple[NDArray[np.uint8] | NDArray[np.uint16], NDArray[np.float16]]:
        """Labels [H,W], uint8 for up to 256 categories, else uint16, and confidence float16 [H,W].

        Raises InputError if a category is missing.
        """
        if not self._added.all():
            missing = np.flatnonzero(~self._added)
            raise InputError(
                f"got logits of {self._added.sum()} of {self._added.size} categories; add() the "
                f"others first (category {missing[0]} is missing)"
            )
        confidence = np.reciprocal(self._total).astype(np.float16)  # the winner's exp(0) / total
        return self._label.copy(), confidence

    def _check(self, first: int, logits: Float32) -> None:
        if logits.dtype != np.float32 or logits.ndim != 3 or logits.shape[1:] != self._grid:
            raise InputError(
                f"got logits {logits.dtype} {list(logits.shape)}; expected float32 "
                f"[n, {self._grid[0]}, {self._grid[1]}]"
            )
        last = first + len(logits)
        if first < 0 or last > self._added.size:
            raise InputError(
                f"got categories {first} to {last - 1}; there are {self._added.size}, from 0"
            )
        if self._added[first:last].any():
            raise InputError(f"got categories {first} to {last - 1}, some of them a second time")

    def _reduce_band(self, first: int, logits: Float32, band: range) -> None:
        """Reduce all of a chunk over the output rows of some runs (one thread's work)."""
        tallest = max(len(run) for run in self._runs[band.start : band.stop])
        categories, rows = _block_shape(len(logits), tallest, self._width)
        scratch = _Scratch(categories, rows, self._width)
        with np.errstate(under="ignore"):  # exp() of a hopeless category
            for start in range(0, len(logits), categories):
                block = logits[start : start + categories]
                for top, run in self._interpolated_columns(block, band):
                    for row in range(run.start, run.stop, rows):
                        part = slice(row, min(row + rows, run.stop))
                        values = scratch.interpolate(*top, self._rows.weight[part])
                        self._reduce(first + start, values, part, scratch)

    def _interpolated_columns(
        self, block: Float32, band: range
    ) -> Iterator[tuple[tuple[Float32, Float32], range]]:
        """Each run of rows with the two grid rows it lies between, as (lower, upper − lower)."""
        columns = self._columns
        row, values = -1, block[:, 0]
        for run in self._runs[band.start : band.stop]:
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

    def _reduce(self, first: int, values: Float32, rows: slice, scratch: "_Scratch") -> None:
        """Merge the values [k,P] of k categories into the running state of P pixels."""
        best = self._best[rows].reshape(-1)
        total = self._total[rows].reshape(-1)
        label = self._label[rows].reshape(-1)
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


def _runs(lower: NDArray[np.int64]) -> list[range]:
    """Ranges of output rows which lie between the same two grid rows."""
    edges = [0, *(np.flatnonzero(np.diff(lower)) + 1).tolist(), len(lower)]
    return [range(a, b) for a, b in pairwise(edges)]


def _split(count: int, parts: int) -> list[range]:
    """``range(count)`` in at most ``parts`` ranges of about the same length."""
    edges = np.linspace(0, count, min(count, parts) + 1).astype(int).tolist()
    return [range(a, b) for a, b in pairwise(edges)]
