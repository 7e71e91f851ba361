"""The twelve shapes as signed distances: negative inside, in units of the shape's radius.

Places are [H,W] arrays, x to the right and y downwards. A shape reaches about 1.1 from the origin.
Distances are exact or a little too small, which is enough for edges, bevels and shadows.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import cos, pi, sin
from typing import Final

import numpy as np

from .fields import Floats, clip

__all__ = ["DISTANCES"]

_Point = tuple[float, float]


def _disc(x: Floats, y: Floats, cx: float, cy: float, radius: float) -> Floats:
    dx, dy = x - cx, y - cy
    distance: Floats = np.sqrt(dx * dx + dy * dy)
    return distance - radius


def _box(x: Floats, y: Floats, half_width: float, half_height: float) -> Floats:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _polygon(x: Floats, y: Floats, corners: Sequence[_Point]) -> Floats:
    """Distance to the nearest edge; inside is where a ray to the right crosses an odd number."""
    nearest = np.full_like(x, np.inf)
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in pairwise((*corners, corners[0])):
        ex, ey = bx - ax, by - ay
        squared = ex * ex + ey * ey
        px, py = x - ax, y - ay
        along = clip(px * (ex / squared) + py * (ey / squared), 0, 1)
        dx, dy = px - along * ex, py - along * ey
        np.minimum(nearest, dx * dx + dy * dy, out=nearest)
        if ey:
            crosses = (py >= 0) != (y >= by)
            inside ^= crosses & (px < py * (ex / ey))
    distance: Floats = np.sqrt(nearest)
    return np.where(inside, -distance, distance)


def _around(count: int, radius: float, start: float = -pi / 2) -> list[_Point]:
    """Points on a circle, the first one at the top."""
    angles = [start + 2 * pi * k / count for k in range(count)]
    return [(radius * cos(angle), radius * sin(angle)) for angle in angles]


def _ball(x: Floats, y: Floats) -> Floats:
    return _disc(x, y, 0, 0, 0.98)


def _ring(x: Floats, y: Floats) -> Floats:
    return np.maximum(_disc(x, y, 0, 0, 1.05), -_disc(x, y, 0, 0, 0.5))


def _star(x: Floats, y: Floats) -> Floats:
    outer, inner = _around(5, 1.15), _around(5, 0.48, -pi / 2 + pi / 5)
    return _polygon(x, y, [point for pair in zip(outer, inner, strict=True) for point in pair])


def _cross(x: Floats, y: Floats) -> Floats:
    return np.minimum(_box(x, y, 1.0, 0.32), _box(x, y, 0.32, 1.0))


def _heart(x: Floats, y: Floats) -> Floats:
    """Two discs, and the tangents from them to the tip."""
    side = np.abs(x)
    tip = _polygon(side, y, ((-0.5, 0.4), (0, 0.98), (0.846, -0.021), (0.47, -0.35), (-0.5, -0.35)))
    return np.minimum(_disc(side, y, 0.47, -0.37, 0.52), tip)


def _moon(x: Floats, y: Floats) -> Floats:
    """A disc that another one is taken from; the mouth is nearest to the horns."""
    arcs = np.maximum(_disc(x, y, 0.1, 0, 1.08), -_disc(x, y, 0.62, 0, 0.86))
    horns = _disc(x, np.abs(y), 0.7704, 0.8468, 0)
    mouth = (x - 0.62) * 0.8468 > np.abs(y) * 0.1504
    return np.where(mouth, horns, arcs)


def _triangle(x: Floats, y: Floats) -> Floats:
    return _polygon(x, y, [(px, py + 0.15) for px, py in _around(3, 1.2)])


def _square(x: Floats, y: Floats) -> Floats:
    return _box(x, y, 0.84, 0.84)


def _arrow(x: Floats, y: Floats) -> Floats:
    head = ((0.05, -0.9), (1.1, 0.0), (0.05, 0.9))
    return _polygon(x, y, (*head, (0.05, 0.36), (-1.05, 0.36), (-1.05, -0.36), (0.05, -0.36)))


def _drop(x: Floats, y: Floats) -> Floats:
    """A disc, and the tangents from it to the tip."""
    tip = _polygon(x, y, ((0, -1.2), (0.6, -0.008), (0, 0.35), (-0.6, -0.008)))
    return np.minimum(_disc(x, y, 0, 0.3, 0.67), tip)


def _flower(x: Floats, y: Floats) -> Floats:
    distance = _disc(x, y, 0, 0, 0.45)
    for cx, cy in _around(5, 0.64):
        distance = np.minimum(distance, _disc(x, y, cx, cy, 0.42))
    return distance


def _bolt(x: Floats, y: Floats) -> Floats:
    upper = ((0.55, -1.1), (-0.1, -1.1), (-0.7, 0.2), (-0.12, 0.2))
    return _polygon(x, y, (*upper, (-0.42, 1.15), (0.72, -0.25), (0.16, -0.25)))


#: Shape → its signed distance at places x, y.
DISTANCES: Final[Mapping[str, Callable[[Floats, Floats], Floats]]] = {
    "ball": _ball,
    "ring": _ring,
    "star": _star,
    "cross": _cross,
    "heart": _heart,
    "moon": _moon,
    "triangle": _triangle,
    "square": _square,
    "arrow": _arrow,
    "drop": _drop,
    "flower": _flower,
    "bolt": _bolt,
}
