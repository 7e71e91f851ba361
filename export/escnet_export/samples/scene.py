"""A made-up landscape before anything is painted: camera, canvas, light, season, noise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = [
    "CAMERA",
    "TILE",
    "Floats",
    "Hour",
    "Painter",
    "Rgb",
    "Scene",
    "Season",
    "mix",
    "step",
    "texture",
]

Floats = npt.NDArray[np.float64]

Rgb = tuple[float, float, float]

CAMERA: Final = 2.3  # m above the ground

TILE: Final = 512  # px a side of the noise that textures are cut from; it repeats


@dataclass(frozen=True, slots=True, kw_only=True)
class Hour:
    """Light: sky at zenith and horizon, what sun and sky shed, share of clouds, sun's height."""

    zenith: Rgb
    horizon: Rgb
    sun: Rgb
    ambient: Rgb
    clouds: float
    elevation: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Season:
    """Colours of the ground, of broad leaves (none: bare trees), and the snow line from 0 to 1."""

    grass: Rgb
    straw: Rgb
    leaves: tuple[Rgb, ...]
    snow: float


@dataclass(slots=True, kw_only=True)
class Scene:
    """The canvas and what all painters share."""

    rng: np.random.Generator
    height: int
    width: int
    layout: str
    season: Season
    hour: Hour
    canvas: Floats = field(init=False)  # [H,W,3]
    soft: Floats = field(init=False)  # [tile,tile] noise as of clouds, mean 0, deviation 1
    rough: Floats = field(init=False)  # the same, as of leaves and grass
    horizon: float = field(init=False)  # row
    focal: float = field(init=False)  # px
    side: float = field(init=False)  # where the sun stands: -1 far left to 1 far right
    ground_x: Floats = field(init=False)  # [rows below the horizon, W], metres
    ground_z: Floats = field(init=False)  # [rows below the horizon, 1], metres

    def __post_init__(self) -> None:
        self.canvas = np.zeros((self.height, self.width, 3))
        self.soft, self.rough = self._noise(3.2), self._noise(1.3)
        self.horizon = self.height * self.uniform(0.46, 0.56)
        self.focal = 0.95 * self.width
        self.side = self.uniform(0.35, 1.0) * (1 if self.rng.random() < 0.5 else -1)
        rows = np.arange(self.first_row, self.height)[:, None] + 0.5
        self.ground_z = self.focal * CAMERA / np.maximum(rows - self.horizon, 0.4)
        self.ground_x = (np.arange(self.width) + 0.5 - self.width / 2) * self.ground_z / self.focal

    def _noise(self, slope: float) -> Floats:
        """Gaussian noise whose power falls as frequency to the minus ``slope``."""
        spectrum = np.fft.rfft2(self.rng.standard_normal((TILE, TILE)))
        squares = np.fft.fftfreq(TILE)[:, None] ** 2 + np.fft.rfftfreq(TILE) ** 2
        squares[0, 0] = 1.0
        spectrum[0, 0] = 0.0
        noise: Floats = np.fft.irfft2(spectrum * squares ** (-slope / 4), s=(TILE, TILE))
        noise /= noise.std()
        return noise

    @property
    def first_row(self) -> int:
        """The first row of ground."""
        return int(self.horizon)

    @property
    def ground(self) -> Floats:
        """The canvas below the horizon, a view."""
        return self.canvas[self.first_row :]

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.rng.random())

    def lit(self, colour: npt.ArrayLike, light: npt.ArrayLike) -> Floats:
        """``colour`` [...,3] under the sky and ``light`` [...], the share of the sun it gets."""
        sun = np.asarray(light)[..., None] * np.asarray(self.hour.sun)
        seen: Floats = np.asarray(colour) * (np.asarray(self.hour.ambient) + sun)
        return seen

    def hazed(self, colour: npt.ArrayLike, distance: npt.ArrayLike) -> Floats:
        """``colour`` [...,3] seen through the air of ``distance`` [...] metres."""
        air = 1 - np.exp(-np.asarray(distance)[..., None] / 1400.0)
        return mix(colour, np.multiply(self.hour.horizon, 0.97), air)

    def project(self, point: Sequence[float]) -> tuple[float, float]:
        """Column and row of (X, Y, Z)."""
        scale = self.focal / point[2]
        return self.width / 2 + point[0] * scale, self.horizon + (CAMERA - point[1]) * scale


Painter = Callable[[Scene, float, float], None]


def mix(a: npt.ArrayLike, b: npt.ArrayLike, share: npt.ArrayLike) -> Floats:
    first = np.asarray(a, np.float64)
    mixed: Floats = first + (np.asarray(b) - first) * np.asarray(share)
    return mixed


def step(values: npt.ArrayLike, low: float, high: float) -> Floats:
    """Smoothly from 0 at ``low`` to 1 at ``high``."""
    t = np.clip((np.asarray(values, np.float64) - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def texture(tile: Floats, rows: Floats, columns: Floats) -> Floats:
    """The repeating ``tile`` between its pixels, bilinearly."""
    rows, columns = np.broadcast_arrays(rows, columns)
    top, left = np.floor(rows), np.floor(columns)
    y, x = rows - top, columns - left
    y0, x0 = top.astype(np.int64) % TILE, left.astype(np.int64) % TILE
    y1, x1 = (y0 + 1) % TILE, (x0 + 1) % TILE
    upper = tile[y0, x0] * (1 - x) + tile[y0, x1] * x
    lower = tile[y1, x0] * (1 - x) + tile[y1, x1] * x
    return upper * (1 - y) + lower * y
