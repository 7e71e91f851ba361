"""From logits on a small grid to a label and a confidence for every pixel of the image.

Logits are interpolated bilinearly to the size of the image and reduced over the categories as
they are made, so categories × height × width never exists in memory. Of a large image, the logits
wait until all are there, and then some rows of pixels at a time are reduced: what is known of a
pixel on the way takes three times the memory of what comes out. What is done to a row of
pixels is written twice: in NumPy (:mod:`escnet_runtime.reduction`), and in C for machines that have
a compiler (:mod:`escnet_runtime.native`).
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from escnet_runtime.bilinear import Taps, bilinear_taps, resize_bilinear
from escnet_runtime.errors import InputError
from escnet_runtime.lanes import usable_cores
from escnet_runtime.native import native_library
from escnet_runtime.native.upsample import NativeRows
from escnet_runtime.reduction import NumpyRows, PixelState

__all__ = ["Taps", "UpsampleArgmax", "bilinear_taps", "resize_bilinear"]

Float32 = NDArray[np.float32]
_Labels: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]
_Rows: TypeAlias = NumpyRows | NativeRows

# Past this the threads wait for memory and for each other's Python.
_MAX_THREADS = 8
# Pixels from which on logits wait for each other, unless they are more numbers than there are
# pixels. A smaller image gains nothing; one of 48 megapixels takes 360 MB less, and less than half
# the time.
_LARGE = 1 << 22


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

        ``threads`` defaults to the cores this process may use, at most 8.
        """
        if min(height, width, classes, *logits_shape) < 1:
            raise InputError(
                f"got an image of {height}×{width} pixels, logits of {logits_shape} and {classes} "
                "categories; every one of them must be at least 1"
            )
        if classes > 65536:
            raise InputError(f"got {classes} categories; a 16-bit label map holds at most 65536")
        self._grid, self._size = logits_shape, (height, width)
        self._threads = threads or min(usable_cores(), _MAX_THREADS)
        self._added = np.zeros(classes, bool)
        self._taps = bilinear_taps(logits_shape[0], height), bilinear_taps(logits_shape[1], width)
        self._edges = _edges(self._taps[0].lower)
        self._library = native_library()
        # Of a large image, what was added so far; else every row of pixels, reduced so far.
        self._waiting: list[tuple[int, Float32]] = []
        self._rows: _Rows | None = None
        pixels = height * width
        if pixels < _LARGE or math.prod(logits_shape) * classes > pixels:
            self._label = self._no_labels()
            self._rows = self._rows_of(range(height), self._label)

    def add(self, first_category: int, logits: Float32) -> None:
        """Take the logits, float32 [n,l,l], of categories ``first_category`` to ``+ n - 1``.

        Raises InputError for a wrong type or shape, and for categories out of range or given twice.
        """
        self._check(first_category, logits)
        if not len(logits):
            return
        if self._rows is None:
            kind = NumpyRows if self._library is None else NativeRows
            self._waiting.append((first_category, kind.prepared(logits.copy())))
        else:
            self._reduce(self._rows, first_category, logits)
        self._added[first_category : first_category + len(logits)] = True

    def result(self) -> tuple[_Labels, NDArray[np.float16]]:
        """Labels [H,W], uint8 for up to 256 categories, else uint16, and confidence float16 [H,W].

        Raises InputError if a category is missing.
        """
        if not self._added.all():
            missing = np.flatnonzero(~self._added)
            raise InputError(
                f"got logits of {self._added.sum()} of {self._added.size} categories; add() the "
                f"others first (category {missing[0]} is missing)"
            )
        if self._rows is not None:
            return self._label.copy(), self._rows.confidence()
        label, confidence = self._no_labels(), np.empty(self._size, np.float16)

        def reduce(band: range) -> None:
            where = slice(band.start, band.stop)
            rows = self._rows_of(band, label[where])
            for first, logits in self._waiting:
                rows.reduce(first, logits, range(len(band)))
            confidence[where] = rows.confidence()

        self._each(_bands(self._edges, len(self._edges)), reduce)
        return label, confidence

    def _no_labels(self) -> _Labels:
        if self._added.size <= 256:
            return np.zeros(self._size, np.uint8)
        return np.zeros(self._size, np.uint16)

    def _rows_of(self, band: range, label: _Labels) -> _Rows:
        """What reduces some rows of pixels, of which nothing is known yet, into ``label``."""
        rows, columns = self._taps
        where = slice(band.start, band.stop)
        shape = len(band), self._size[1]
        state = PixelState(
            rows=Taps(lower=rows.lower[where], upper=rows.upper[where], weight=rows.weight[where]),
            columns=columns,
            best=np.full(shape, -np.inf, np.float32),
            total=np.zeros(shape, np.float32),
            label=label,
        )
        return NumpyRows(state) if self._library is None else NativeRows(self._library, state)

    def _reduce(self, rows: _Rows, first: int, logits: Float32) -> None:
        """Reduce a chunk into all rows."""
        prepared = rows.prepared(logits)
        bands = _bands(self._edges, 4 * self._threads)
        work = math.prod(self._size) * len(logits)
        if self._threads == 1 or work < rows.least_parallel:
            bands = [range(self._size[0])]
        self._each(bands, partial(rows.reduce, first, prepared))

    def _each(self, bands: list[range], work: Callable[[range], None]) -> None:
        if self._threads == 1 or len(bands) == 1:
            for band in bands:
                work(band)
            return
        with ThreadPoolExecutor(self._threads) as pool:
            for done in [pool.submit(work, band) for band in bands]:
                done.result()

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


def _edges(lower: NDArray[np.int64]) -> list[int]:
    """Where output rows begin to lie between other two grid rows, with 0 and their number."""
    return [0, *(np.flatnonzero(np.diff(lower)) + 1).tolist(), len(lower)]


def _bands(edges: list[int], most: int) -> list[range]:
    """At most so many ranges of output rows, of about the same number of grid rows."""
    runs = len(edges) - 1
    chosen = np.linspace(0, runs, min(runs, most) + 1).astype(int).tolist()
    return [range(edges[a], edges[b]) for a, b in pairwise(chosen)]
