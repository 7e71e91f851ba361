"""What stands behind the objects: one surface seen face on, or a view with a horizon."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .fields import Floats, clip, turned
from .stuff import PAINTERS
from .words import STUFF

__all__ = ["Backdrop", "paint_backdrop"]

_FLOORS: Final = ("wooden floor", "tiled floor")
_WALLS: Final = ("brick wall", "plaster wall")
_GROUNDS: Final = ("grassy field", "sandy beach", "gravel path", "snowy ground")
# Surfaces with a direction of their own; whatever else is seen face on may be turned.
_UPRIGHT: Final = ("brick wall", "cloudy sky", "calm sea")


@dataclass(frozen=True, slots=True, kw_only=True)
class Backdrop:
    """Colours [3,H,W], and for each pixel the index of its surface in ``names`` ([H,W])."""

    colours: Floats
    surfaces: NDArray[np.int16]
    names: tuple[str, ...]


def paint_backdrop(rng: np.random.Generator, size: int) -> Backdrop:
    """A backdrop of ``size`` px a side."""
    names = _layout(rng)
    if len(names) == 1:
        colours = _face_on(rng, names[0], size)
        return Backdrop(colours=colours, surfaces=np.zeros((size, size), np.int16), names=names)
    edges = _edges(rng, names, size)
    rows = np.arange(size, dtype=np.float64)[:, None] + 0.5
    surfaces = np.zeros((size, size), np.int16)
    for edge in edges:
        surfaces += rows >= edge
    colours = np.zeros((3, size, size), np.float32)
    for index, name in enumerate(names):
        here = surfaces == index
        upper = float(edges[index - 1].min()) if index else 0.0
        painted = _standing(rng, name, size) if index == 0 else _lying(rng, name, size, upper)
        np.copyto(colours, painted, where=here)
    return Backdrop(colours=colours, surfaces=surfaces, names=names)


def _layout(rng: np.random.Generator) -> tuple[str, ...]:
    """Names of the surfaces from top to bottom."""

    def one(names: Sequence[str]) -> str:
        return names[int(rng.integers(len(names)))]

    kind = rng.random()
    if kind < 0.35:
        return (one(STUFF),)
    if kind < 0.62:
        return one(_WALLS), one(_FLOORS)
    if kind < 0.72:
        return one(_WALLS), one(_GROUNDS)
    if kind < 0.88:
        return "cloudy sky", one(_GROUNDS)
    if kind < 0.94:
        return "cloudy sky", "calm sea"
    return "cloudy sky", "calm sea", "sandy beach"


def _edges(
    rng: np.random.Generator, names: tuple[str, ...], size: int
) -> list[NDArray[np.float64]]:
    """Rows [W] where one surface ends and the next begins; ragged outdoors, at least 6 % apart."""
    columns = np.arange(size) / size
    heights = [rng.uniform(0.28, 0.58)]
    if len(names) == 3:
        heights = [rng.uniform(0.18, 0.34), rng.uniform(0.5, 0.68)]
    edges = []
    for height, below in zip(heights, names[1:], strict=True):
        slope, rough = rng.uniform(-0.06, 0.06), rng.uniform(0.0, 0.02)
        straight = below in (*_FLOORS, "calm sea")
        row = height + slope * (0.3 if below == "calm sea" else 1.0) * (columns - 0.5)
        if not straight:
            # A triangle wave: labels must not depend on a processor's sine.
            turns = columns * rng.uniform(1.5, 4) + rng.random()
            row = row + rough * np.abs(2 * (turns - np.floor(turns)) - 1)
        edges.append(row * size)
    return edges


def _places(size: int) -> tuple[Floats, Floats]:
    """Columns and rows in units of 1/128 of the side, so that textures grow with the picture."""
    grid = (np.arange(size, dtype=np.float32) + 0.5) * (128 / size)
    x, y = np.broadcast_arrays(grid[None, :], grid[:, None])
    return x, y


def _face_on(rng: np.random.Generator, name: str, size: int) -> Floats:
    x, y = _places(size)
    angle = 0.0 if name in _UPRIGHT else rng.uniform(0, pi)
    zoom = rng.uniform(0.75, 1.2)
    detail = np.ones((size, size), np.float32)
    return PAINTERS[name](rng, *turned(zoom * x, zoom * y, angle), detail)


def _standing(rng: np.random.Generator, name: str, size: int) -> Floats:
    x, y = _places(size)
    zoom = rng.uniform(0.8, 1.3)
    return PAINTERS[name](rng, x * zoom, y * zoom, np.full((size, size), 0.9, np.float32))


def _lying(rng: np.random.Generator, name: str, size: int, upper: float) -> Floats:
    """Ground that recedes towards a horizon above its upper edge (px)."""
    x, y = _places(size)
    horizon = upper * 128 / size - rng.uniform(14, 40)
    focus = 128 - horizon
    depth = focus / np.maximum(y - horizon, 4)  # 1 at the lower edge, more further away
    middle = rng.uniform(20, 108)
    detail = clip(1.25 / depth, 0, 1)
    return PAINTERS[name](rng, (x - middle) * depth * 0.8, focus * depth * 0.8, detail)
