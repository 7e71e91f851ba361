"""The prompt generator's decisions in NumPy: :mod:`escnet_runtime.ppg` says what they are.

How it stays fast: which of two centroids is nearer to (x, y) is the sign of an integer form that
is linear in x and y. It splits into a term per row and a term per column, so a pixel costs one
comparison a pair of centroids. Categories run along the last axis, where comparisons vectorise.
Where the foreground is small, :mod:`escnet_runtime.ppg_sparse` decides the same from a list of it.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from escnet_runtime.ppg_sparse import sparse_prompts

if TYPE_CHECKING:
    from escnet_runtime.ppg import PpgConstants, Prompts

__all__ = ["MAX_PIXELS", "numpy_prompts"]

MAX_PIXELS = 1024
"""Largest h*w: one CUDA block holds one map, and exact arithmetic stays within 63 bits."""

# Up to so many foreground pixels a category and beside, a list of them is faster (measured).
_FEW, _FEW_IN_ALL = 16, 512
_BLOCK = 512  # categories at a time, measured: large enough for NumPy, small enough for caches

_Bools = npt.NDArray[np.bool_]
_Floats = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int32]
_Longs = npt.NDArray[np.int64]


def numpy_prompts(scores: _Floats, constants: "PpgConstants", prompts: "Prompts") -> None:
    """Write the prompts of checked maps [N,h,w] into ``prompts``."""
    for start in range(0, len(scores), _BLOCK):
        _prompt_block(scores, constants, prompts, slice(start, start + _BLOCK))


def _prompt_block(
    scores: _Floats, constants: "PpgConstants", prompts: "Prompts", block: slice
) -> None:
    """Fill the block's rows of ``prompts``."""
    # NaN is as far from the foreground as -inf, and from here on the same.
    usable = np.ascontiguousarray(scores[block])
    usable = np.where(np.isnan(usable), np.float32(-np.inf), usable)
    peak = usable.max(axis=(1, 2), keepdims=True)
    with np.errstate(over="ignore"):
        threshold = peak + np.float32(constants.threshold_offset)
    foreground = usable >= np.maximum(threshold, np.finfo(np.float32).min)  # never -inf
    prompts.probabilities[block] = _probabilities(usable, peak, constants.temperature)

    if 0 < np.count_nonzero(foreground) <= _FEW * len(usable) + _FEW_IN_ALL:
        _fill_sparse(usable, foreground, constants, prompts, block)
        return
    seeds = _seeds(usable, foreground, constants.regions)
    by_category = np.ascontiguousarray(np.moveaxis(foreground, 0, -1))
    centroids = _lloyd(seeds, by_category, constants.iterations)
    labels = np.full(by_category.shape, -1, np.int8)
    for region, mask in _nearest(centroids, by_category):
        labels += mask.view(np.int8) * np.int8(region + 1)
    prompts.regions[block] = np.moveaxis(labels, -1, 0)
    prompts.points[block], prompts.point_labels[block] = _points(
        usable, prompts.regions[block], constants.regions
    )


def _fill_sparse(
    usable: _Floats, foreground: _Bools, constants: "PpgConstants", prompts: "Prompts", block: slice
) -> None:
    """The rest of a block's rows from the list of its foreground pixels."""
    found = sparse_prompts(
        usable, foreground, regions=constants.regions, iterations=constants.iterations
    )
    n, h, w = usable.shape
    regions = np.full(n * h * w, -1, np.int32)
    regions[found.flat] = found.regions
    points = np.zeros((n * constants.regions, 2), np.float32)
    labels = np.full(n * constants.regions, -1, np.int32)
    y, x = np.divmod(found.best % (h * w), w)
    points[found.group, 0], points[found.group, 1] = x, y
    labels[found.group] = 1
    prompts.regions[block] = regions.reshape(n, h, w)
    prompts.points[block] = points.reshape(n, -1, 2)
    prompts.point_labels[block] = labels.reshape(n, -1)


def _probabilities(usable: _Floats, peak: _Floats, temperature: float) -> _Floats:
    """exp((score - peak) / temperature), 0 where the score is NaN or -inf, 1 at a peak of +inf."""
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        values: _Floats = np.exp((usable - peak) / np.float32(temperature))
    if not np.isfinite(peak).all():
        np.copyto(values, usable > 0, where=np.isnan(values))  # inf - inf, or -inf + inf
    return values


def _seeds(usable: _Floats, foreground: _Bools, regions: int) -> _Longs:
    """Farthest-point seeds as centroids [3,K,n]: count 1, x, y.

    When every foreground pixel is a seed, the farthest one is at distance 0 and repeats a seed:
    never strictly nearer than the original, that region stays empty. The original cannot move
    away from its copy, as k-means is then at its fixed point from the start.
    """
    n, h, w = usable.shape
    nearest = np.where(foreground, np.int32(2 * MAX_PIXELS**2), np.int32(-1))
    flat = nearest.reshape(n, -1)
    xs, ys = np.arange(w, dtype=np.int32), np.arange(h, dtype=np.int32)
    pixels = np.empty((regions, n), np.int64)
    pixels[0] = usable.reshape(n, -1).argmax(axis=1)
    for k in range(1, regions):
        y, x = np.divmod(pixels[k - 1].astype(np.int32), np.int32(w))
        from_rows, from_columns = (ys - y[:, None]) ** 2, (xs - x[:, None]) ** 2
        np.minimum(nearest, from_rows[:, :, None] + from_columns[:, None, :], out=nearest)
        pixels[k] = flat.argmax(axis=1)
    y, x = np.divmod(pixels, w)
    return np.stack([np.ones_like(x), x, y])


def _lloyd(seeds: _Longs, foreground: _Bools, iterations: int) -> _Longs:
    """Final centroids [3,K,n] of k-means on ``foreground`` [h,w,n]; settled maps drop out."""
    final, centroids = seeds.copy(), seeds
    active = np.arange(seeds.shape[2])
    for _ in range(iterations):
        moved = _means(centroids, foreground)
        final[:, :, active] = moved
        changed = (moved != centroids).any(axis=(0, 1))
        if not changed.any():
            break
        # compress, unlike an index, keeps categories contiguous: three times as fast later.
        active, centroids = active[changed], moved.compress(changed, axis=2)
        if not changed.all():
            foreground = foreground.compress(changed, axis=2)
    return final


def _means(centroids: _Longs, foreground: _Bools) -> _Longs:
    """One Lloyd step: the new centroids [3,K,n]."""
    h, w, n = foreground.shape
    regions = centroids.shape[1]
    narrow = np.uint8 if max(h, w) <= np.iinfo(np.uint8).max else np.uint16
    rows = np.empty((regions, h, n), np.float32)
    columns = np.empty((regions, w, n), np.float32)
    for region, mask in _nearest(centroids, foreground):
        rows[region] = np.add.reduce(mask.view(np.uint8), axis=1, dtype=narrow)
        columns[region] = np.add.reduce(mask.view(np.uint8), axis=0, dtype=narrow)
    # Exact in any order of summation: integers, and no sum exceeds 1024 * 1023 < 2^24.
    of_rows = np.stack([np.ones(h, np.float32), np.arange(h, dtype=np.float32)]) @ rows
    of_columns = np.arange(w, dtype=np.float32) @ columns
    sums = np.stack([of_rows[:, 0], of_columns, of_rows[:, 1]])
    return np.where(sums[0] > 0, sums.astype(np.int64), centroids)


def _nearest(centroids: _Longs, foreground: _Bools) -> Iterator[tuple[int, _Bools]]:
    """Yield each region with the mask [h,w,n] of the foreground pixels nearest to its centroid.

    Centroid b = (m, s) is strictly nearer to p than a = (n, r), s and r being sums, if and only if
    |p - s/m|^2 < |p - r/n|^2, that is, times m^2 n^2 and with |p|^2 cancelled,
    n^2 |s|^2 - m^2 |r|^2 + 2 m n (m r - n s) . p < 0.
    As m, n <= 1024 and coordinates of an h*w <= 1024 grid satisfy x^2 + y^2 < 2^20, the first two
    terms lie in [0, 2^60) and the product's x and y parts below 2^61 each: int64 is exact.

    From the last region down: b takes what it is strictly nearer to than every a < b, among what
    no later region took. Ties so go to the lowest region.
    """
    h, w, _ = foreground.shape
    ys, xs = np.arange(h)[:, None], np.arange(w)[:, None]
    count, sum_x, sum_y = centroids
    square = sum_x**2 + sum_y**2
    rest = foreground.copy()
    for b in range(centroids.shape[1] - 1, 0, -1):
        m, n = count[b], count[:b]
        constant = n**2 * square[b] - m**2 * square[:b]
        slope_x = 2 * m * n * (m * sum_x[:b] - n * sum_x[b])
        slope_y = 2 * m * n * (m * sum_y[:b] - n * sum_y[b])
        by_row = (constant[:, None] + slope_y[:, None] * ys)[:, :, None]
        by_column = (-slope_x[:, None] * xs)[:, None]
        mask = np.logical_and.reduce(by_row < by_column, axis=0)
        mask &= rest
        rest ^= mask
        yield b, mask
    yield 0, rest


def _points(usable: _Floats, regions: _Ints, count: int) -> tuple[_Floats, _Ints]:
    """The best pixel of every region: points [n,K,2] and labels [n,K]."""
    n, _, w = usable.shape
    values, owners = usable.reshape(n, -1), regions.reshape(n, -1)
    points = np.zeros((n, count, 2), np.float32)
    labels = np.full((n, count), -1, np.int32)
    for k in range(count):
        best = np.where(owners == k, values, np.float32(-np.inf)).argmax(axis=1)
        found = owners[np.arange(n), best] == k  # an empty region's argmax is someone else's
        points[found, k, 1], points[found, k, 0] = np.divmod(best[found], w)
        labels[found, k] = 1
    return points, labels
