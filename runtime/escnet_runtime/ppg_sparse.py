"""The prompt generator's decisions over a list of foreground pixels: the same, for few of them.

:mod:`escnet_runtime.ppg` is the specification. Its dense form takes a handful of NumPy calls for
each pair of regions, which small pictures with small regions spend most of their time on; here one
call serves all pairs and all categories, and works on foreground pixels alone.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["SparsePrompts", "sparse_prompts"]

_Bools = npt.NDArray[np.bool_]
_Floats = npt.NDArray[np.float32]
_Longs = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class SparsePrompts:
    """Where the foreground lies, and what was decided.

    ``flat``: int64 [F], index into the flattened maps [n·h·w] of every foreground pixel.
    ``regions``: int64 [F], the region of each.
    ``best``: int64 [G], index into the flattened maps of the best pixel of each region that has
    one; ``group``: int64 [G], category · K + region.
    """

    flat: _Longs
    regions: _Longs
    best: _Longs
    group: _Longs


@dataclass(frozen=True, kw_only=True, eq=False)
class _List:
    """Foreground pixels [F] by category and number; ``first`` [n] is where each one's begin.

    ``small``: the maps are, so that float64 tells distances apart (:func:`_nearest`).
    """

    owner: _Longs
    x: _Longs
    y: _Longs
    first: _Longs
    small: bool


def sparse_prompts(
    usable: _Floats, foreground: _Bools, *, regions: int, iterations: int
) -> SparsePrompts:
    """Regions and points of maps [n, h, w], with at least one foreground pixel in all of them.

    Args:
        usable: float32 [n, h, w] without NaN.
        foreground: bool [n, h, w].
        regions: K.
        iterations: most Lloyd iterations.
    """
    pixels = usable[0].size
    flat = np.flatnonzero(foreground)
    category, pixel = np.divmod(flat, pixels)
    # A map without foreground has no place in the list.
    starts = np.empty(len(flat), np.bool_)
    starts[:1] = True
    np.not_equal(category[1:], category[:-1], out=starts[1:])
    y, x = np.divmod(pixel, usable.shape[2])
    listed = _List(
        owner=np.cumsum(starts) - 1,
        x=x,
        y=y,
        first=np.flatnonzero(starts),
        small=_is_small(pixels, *usable.shape[1:]),
    )
    values = usable.reshape(-1)[flat]
    labels = _lloyd(_seeds(values, listed, regions), listed, iterations)
    # The best pixel of a region is the first of its largest values.
    group = listed.owner * regions + labels
    largest = np.full(len(listed.first) * regions, -np.inf, np.float32)
    np.maximum.at(largest, group, values)
    hits = np.flatnonzero(values == largest[group])
    best = hits[np.unique(group[hits], return_index=True)[1]]
    return SparsePrompts(
        flat=flat, regions=labels, best=flat[best], group=category[best] * regions + labels[best]
    )


def _is_small(pixels: int, height: int, width: int) -> bool:
    """Whether float64 tells any two squared distances of pixel and centroid apart.

    Two that differ do so by 1 / (m n)^2 at least, m and n being counts up to ``pixels``; they are
    below h^2 + w^2, where neighbours of float64 are 2^-52 of that apart.
    """
    return pixels**4 * (height**2 + width**2) < 2**51


def _first_of_largest(values: npt.NDArray[Any], listed: _List) -> _Longs:
    """The place in the list of each category's largest value, the first one of equals: [n]."""
    largest = np.maximum.reduceat(values, listed.first)
    hits = np.flatnonzero(values == largest[listed.owner])
    return hits[np.searchsorted(hits, listed.first)]


def _seeds(values: _Floats, listed: _List, regions: int) -> _Longs:
    """Farthest-point seeds as centroids [3, n, K]: count 1, x, y."""
    places = np.empty((regions, len(listed.first)), np.int64)
    places[0] = _first_of_largest(values, listed)
    nearest: _Longs | None = None
    for k in range(1, regions):
        last = places[k - 1][listed.owner]
        distance = (listed.x - listed.x[last]) ** 2 + (listed.y - listed.y[last]) ** 2
        nearest = distance if nearest is None else np.minimum(nearest, distance)
        places[k] = _first_of_largest(nearest, listed)
    seeds = places.T
    return np.stack([np.ones_like(seeds), listed.x[seeds], listed.y[seeds]])


@cache
def _pairs(regions: int) -> tuple[_Longs, _Longs, _Longs, _Longs]:
    """Pairs a < b by their b: a, b [P], where each b begins [K-1], and every b as a column."""
    b, a = np.tril_indices(regions, -1)
    later = np.arange(1, regions)
    return a, b, later * (later - 1) // 2, later[:, None]


def _lloyd(centroids: _Longs, listed: _List, iterations: int) -> _Longs:
    """Final regions [F] of k-means from centroids [3, n, K]."""
    labels = _nearest(centroids, listed)
    for _ in range(iterations):
        moved = _means(labels, centroids, listed)
        if np.array_equal(moved, centroids):
            break
        centroids = moved
        labels = _nearest(centroids, listed)
    return labels


def _means(labels: _Longs, centroids: _Longs, listed: _List) -> _Longs:
    _, n, regions = centroids.shape
    group = listed.owner * regions + labels
    # Whole numbers far below 2^53: float64 adds them exactly.
    sums = [np.bincount(group, weight, n * regions) for weight in (None, listed.x, listed.y)]
    found = np.stack(sums).astype(np.int64).reshape(centroids.shape)
    return np.where(found[0] > 0, found, centroids)


def _nearest(centroids: _Longs, listed: _List) -> _Longs:
    """The region [F] whose centroid is nearest; ties go to the lowest.

    A squared distance is D / m^2 with whole D = |m p - s|^2 and m the region's count. Where
    float64 tells two different such numbers apart, its quotients decide as whole numbers do:
    equal ones are rounded to equal ones. Elsewhere the products are compared, see
    ``ppg_numpy._nearest``.
    """
    if centroids.shape[2] == 1:
        return np.zeros(len(listed.x), np.int64)
    if not listed.small:
        return _nearest_of_many(centroids, listed)
    count, sum_x, sum_y = centroids.take(listed.owner, axis=1)
    dx = count * listed.x[:, None]
    dx -= sum_x
    dy = count * listed.y[:, None]
    dy -= sum_y
    dx *= dx
    dy *= dy
    dx += dy
    count *= count
    labels: _Longs = (dx / count).argmin(axis=1)
    return labels


def _nearest_of_many(centroids: _Longs, listed: _List) -> _Longs:
    """The region [F] whose centroid is nearest; the form of ``ppg_numpy._nearest``, and its bounds.

    Its three terms lie below 2^60, 2^61 and 2^61, so their sum is exact.
    """
    regions = centroids.shape[2]
    if regions == 1:
        return np.zeros(len(listed.x), np.int64)
    a, b, begins, later = _pairs(regions)
    m, n = centroids[0][:, b], centroids[0][:, a]
    (mx, my), (nx, ny) = centroids[1:][:, :, b], centroids[1:][:, :, a]
    constant = n**2 * (mx**2 + my**2) - m**2 * (nx**2 + ny**2)
    twice = 2 * m * n
    form = np.stack([constant, twice * (m * nx - n * mx), twice * (m * ny - n * my)])
    own = form.transpose(0, 2, 1)[:, :, listed.owner]
    nearer = own[0] + own[1] * listed.x + own[2] * listed.y < 0
    # A region has what it is strictly nearer to than every earlier one; the last such one has it.
    wins = np.logical_and.reduceat(nearer, begins, axis=0)
    labels: _Longs = (wins * later).max(axis=0)
    return labels
