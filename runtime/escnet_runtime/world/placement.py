"""Where the objects of a scene stand, and which of them hides which."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..errors import EscNetError
from .figures import Figure, make_figure
from .words import Composition

__all__ = ["Placed", "Placement", "place"]

_SMALL, _BIG = 24.0, 90.0  # px across, in a picture of 128 px a side
_CROWD: Final = 190.0  # of n objects, none is larger than this over the root of n
_SEEN: Final = 0.5  # of an object's pixels, at least
_SEEN_PIXELS: Final = 80  # in a picture of 128 px a side, at least
_FEWEST_PIXELS: Final = 12  # of an object in a picture of any size: less is a speck
_TRIES: Final = 10  # places for an object
_ROUNDS: Final = 16  # with smaller objects each
_SHRINK: Final = 0.85
_NEIGHBOUR: Final = 0.35  # share of objects that stand close to another one


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A figure at its place.

    Attributes:
        corner: (column, row) of its window's first pixel, which may lie outside the picture.
        seen: number of its pixels that are seen.
    """

    figure: Figure
    corner: tuple[int, int]
    seen: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Objects from the nearest to the farthest, and which of them is seen where.

    Attributes:
        instances: int16 [H,W], index into ``placed``; -1 where the backdrop is seen.
    """

    placed: tuple[Placed, ...]
    instances: NDArray[np.int16]


def place(
    rng: np.random.Generator, cast: Sequence[Composition], *, size: int, fewest: int
) -> Placement:
    """Places for ``fewest`` of the compositions at least, always for the first one.

    Objects are placed from near to far, each where enough of it is seen past the nearer ones; one
    that finds no such place is left out. If too few find one, all is tried again with smaller ones.
    """
    for attempt in range(_ROUNDS):
        order = rng.permutation(len(cast))
        placement = _round(rng, [cast[i] for i in order], size, _SHRINK**attempt)
        present = {placed.figure.composition for placed in placement.placed}
        if len(placement.placed) >= fewest and cast[0] in present:
            return placement
    raise EscNetError(f"no place for {fewest} objects on {size}×{size} px; expected fewer of them")


def _round(
    rng: np.random.Generator, cast: Sequence[Composition], size: int, shrink: float
) -> Placement:
    instances = np.full((size, size), -1, np.int16)
    placed: list[Placed] = []
    scale = shrink * size / 128
    largest = max(min(_BIG, _CROWD / len(cast) ** 0.5), 1.3 * _SMALL)
    for composition in cast:
        across = _SMALL * (largest / _SMALL) ** rng.random() * scale
        figure = make_figure(rng, composition, across / 2)
        found = _find_place(rng, figure, instances, placed)
        if found is not None:
            _claim(instances, found, len(placed))
            placed.append(found)
    return Placement(placed=tuple(placed), instances=instances)


def _find_place(
    rng: np.random.Generator,
    figure: Figure,
    instances: NDArray[np.int16],
    placed: Sequence[Placed],
) -> Placed | None:
    size, half = instances.shape[0], figure.mask.shape[0] // 2
    margin = 0.6 * figure.radius
    wanted = min(_SEEN_PIXELS * (size / 128) ** 2, 0.8 * figure.area)
    enough = max(_SEEN * figure.area, wanted, _FEWEST_PIXELS)
    for _ in range(_TRIES):
        x, y = rng.uniform(margin, size - margin, 2).tolist()
        if placed and rng.random() < _NEIGHBOUR:
            other = placed[int(rng.integers(len(placed)))]
            reach = 0.8 * (other.figure.radius + figure.radius)
            middle = other.figure.mask.shape[0] // 2
            x = other.corner[0] + middle + rng.uniform(-reach, reach)
            y = other.corner[1] + middle + rng.uniform(-reach, reach)
            x, y = (min(max(one, margin), size - margin) for one in (x, y))
        corner = round(x) - half, round(y) - half
        here, window = _windows(corner, figure, size)
        seen = int(np.count_nonzero(figure.mask[window] & (instances[here] < 0)))
        if seen >= enough:
            return Placed(figure=figure, corner=corner, seen=seen)
    return None


def _claim(instances: NDArray[np.int16], placed: Placed, index: int) -> None:
    here, window = _windows(placed.corner, placed.figure, instances.shape[0])
    view = instances[here]
    view[placed.figure.mask[window] & (view < 0)] = index


def _windows(
    corner: tuple[int, int], figure: Figure, size: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The part of the picture a figure's window covers, and that part of the window."""
    (left, top), side = corner, figure.mask.shape[0]
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + side, size), min(top + side, size)
    return (
        (slice(y0, y1), slice(x0, x1)),
        (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)),
    )
