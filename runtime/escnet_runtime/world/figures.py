"""One object: its outline on the pixel grid, and how it is painted over what lies behind it."""

from dataclasses import dataclass
from math import ceil, pi

import numpy as np
from numpy.typing import NDArray

from .fields import Floats, clip, mix, noise, tint, turned
from .patterns import INKS, PATTERNS
from .shapes import DISTANCES
from .words import Composition

__all__ = ["Figure", "Light", "make_figure", "paint_figure"]

# How far objects of a shape lean to either side. An arrow and what looks the same from all sides
# may point anywhere; a heart that stands on its head is rare.
_LEAN = {"arrow": pi, "ring": pi, "star": pi, "flower": pi, "ball": pi}
_DEFAULT_LEAN = 0.22 * pi
_REACH = 1.32  # of the largest shape, in radii, stretched


@dataclass(frozen=True, slots=True, kw_only=True)
class Light:
    """Where light comes from (a unit vector in the picture), and how dark and soft shadows are."""

    x: float
    y: float
    shadow: float  # from 0 to 1
    softness: float  # in radii of the object


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """An object on a square window of its own, not yet at a place.

    Attributes:
        distance: [w,w] px to the edge, negative inside.
        x: [w,w] px from the middle in the object's own frame, to the right.
        y: the same, downwards.
        mask: bool [w,w], where the object is.
        area: number of pixels in the mask.
    """

    composition: Composition
    radius: float
    distance: Floats
    x: Floats
    y: Floats
    mask: NDArray[np.bool_]
    area: int


def make_figure(rng: np.random.Generator, composition: Composition, radius: float) -> Figure:
    """An object of about ``radius`` px, leaning and stretched a little."""
    lean = _LEAN.get(composition.shape, _DEFAULT_LEAN)
    angle, stretch = rng.uniform(-lean, lean), rng.uniform(0.9, 1.11)
    half = ceil(radius * _REACH) + 3
    grid = np.arange(-half, half, dtype=np.float32)
    across = grid[None, :] + rng.random()
    down = grid[:, None] + rng.random()
    x, y = turned(across, down, angle)
    distance = DISTANCES[composition.shape](x / (radius * stretch), y * (stretch / radius)) * radius
    mask = distance < 0
    return Figure(
        composition=composition,
        radius=radius,
        distance=distance,
        x=x,
        y=y,
        mask=mask,
        area=int(np.count_nonzero(mask)),
    )


def paint_figure(
    rng: np.random.Generator,
    canvas: Floats,
    figure: Figure,
    corner: tuple[int, int],
    light: Light,
) -> None:
    """Lay the shadow and then the object over ``canvas`` [3,H,W], which is changed.

    ``corner`` is the (column, row) of the window's first pixel and may lie outside the canvas.
    """
    fall = figure.radius * rng.uniform(0.1, 0.22)
    soft = figure.radius * light.softness + 1
    shade = light.shadow * clip(0.5 - figure.distance / (2 * soft), 0, 1)
    place = round(corner[0] - fall * light.x), round(corner[1] - fall * light.y)
    black = np.zeros((3, *shade.shape), np.float32)
    _lay(canvas, black, shade, place)
    coverage = clip(0.5 - figure.distance, 0, 1)
    _lay(canvas, _surface(rng, figure, light), coverage, corner)


def _lay(canvas: Floats, colours: Floats, coverage: Floats, corner: tuple[int, int]) -> None:
    """Mix ``colours`` [3,w,w] into the canvas by ``coverage`` [w,w], cut at the canvas' edges."""
    (left, top), (height, width) = corner, canvas.shape[1:]
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + coverage.shape[1], width), min(top + coverage.shape[0], height)
    if x0 >= x1 or y0 >= y1:
        return
    rows, columns = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
    under = canvas[:, y0:y1, x0:x1]
    under += (colours[:, rows, columns] - under) * coverage[rows, columns]


def _surface(rng: np.random.Generator, figure: Figure, light: Light) -> Floats:
    """Colours [3,w,w] of the whole window: pattern, then light."""
    tone, inks = INKS[figure.composition.colour]
    ink = inks[int(rng.integers(len(inks)))]
    x, y = turned(figure.x, figure.y, rng.uniform(0, pi))
    texture = PATTERNS[figure.composition.texture]
    pattern = texture(rng, x, y, -figure.distance, figure.radius)
    jitter = np.asarray(rng.uniform(-0.035, 0.035, 3), np.float32)[:, None, None]
    colours = mix(tint(tone) + jitter, tint(ink), pattern)
    shift = rng.integers(0, 512, 2).tolist()
    grain = noise(1.2, figure.x + shift[0], figure.y + shift[1])
    shade, gloss = _relief(rng, figure, light)
    brightness = rng.uniform(0.88, 1.06)
    rough: Floats = shade + 0.025 * grain
    return colours * (rough * brightness) + gloss


def _relief(rng: np.random.Generator, figure: Figure, light: Light) -> tuple[Floats, Floats]:
    """Light and highlight [w,w]: a ball is round, everything else flat with a bevelled edge."""
    distance, radius = figure.distance, figure.radius
    dx, dy = np.zeros_like(distance), np.zeros_like(distance)
    dx[:, 1:-1] = (distance[:, 2:] - distance[:, :-2]) / 2
    dy[1:-1] = (distance[2:] - distance[:-2]) / 2
    facing = dx * light.x + dy * light.y
    if figure.composition.shape == "ball":
        out = clip(1 + distance / radius, 0, 1)
        up = np.sqrt(1 - out * out)
        lit = 0.55 * out * facing + 0.83 * up
        spot = clip((lit - 0.86) / 0.14, 0, 1)
        gloss = rng.uniform(0.1, 0.35) * spot * spot
        return clip(lit, 0, 1) * 0.56 + 0.52, gloss
    width = rng.uniform(0.1, 0.24) * radius + 1
    bevel = clip(1 + distance / width, 0, 1)
    shade = 1 + rng.uniform(0.2, 0.42) * bevel * facing
    across = (figure.x * rng.uniform(-0.1, 0.1)) / radius
    gloss = rng.uniform(0, 0.25) * clip(bevel * facing - 0.3, 0, 1)
    return shade + across, gloss
