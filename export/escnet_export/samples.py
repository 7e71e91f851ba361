"""Landscapes that look like photos, made from a seed: the package needs no pictures of its own.

Parity is measured on pictures with the statistics of photos: spectra near 1/f, occlusion, texture
that shrinks with distance, haze, shadows, sensor noise. A scene is painted from far to near through
one pinhole camera: X is metres to the right, Y up, Z away from the camera. Colours are display
values from 0 to 1. Arithmetic is float64, random numbers come from PCG64, so a seed gives the same
picture everywhere up to the last bit of the C library's mathematics.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
from escnet_runtime.errors import InputError
from escnet_runtime.images import ImageArray
from PIL import Image, ImageDraw

__all__ = ["SAMPLE_CATEGORIES", "sample_photo", "sample_photos"]

SAMPLE_CATEGORIES: Final[tuple[str, ...]] = (
    *("sky", "cloud", "mountain", "tree", "grass", "road"),
    *("house", "lake", "car", "cow", "fence", "snow"),
)

_Floats = npt.NDArray[np.float64]
_Rgb = tuple[float, float, float]
_Outline = Sequence[tuple[float, float]]

_SMALLEST, _LARGEST = 64, 4096  # px a side
_CAMERA: Final = 2.3  # m above the ground
_SAMPLING: Final = 3  # drawn shapes are supersampled by this much
_TILE: Final = 512  # px a side of the noise that textures are cut from; it repeats
_LAYOUTS: Final = ("road", "lake", "meadow", "village")
_WOOD: Final = (0.30, 0.23, 0.17)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hour:
    """Light: sky at zenith and horizon, what sun and sky shed, share of clouds, sun's height."""

    zenith: _Rgb
    horizon: _Rgb
    sun: _Rgb
    ambient: _Rgb
    clouds: float
    elevation: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Season:
    """Colours of the ground, of broad leaves (none: bare trees), and the snow line from 0 to 1."""

    grass: _Rgb
    straw: _Rgb
    leaves: tuple[_Rgb, ...]
    snow: float


_HOURS: Final = (
    _Hour(
        zenith=(0.20, 0.42, 0.74), horizon=(0.70, 0.82, 0.91), sun=(0.86, 0.82, 0.72),
        ambient=(0.38, 0.43, 0.52), clouds=0.45, elevation=0.85,
    ),
    _Hour(
        zenith=(0.34, 0.50, 0.70), horizon=(0.97, 0.82, 0.62), sun=(1.02, 0.74, 0.44),
        ambient=(0.34, 0.36, 0.45), clouds=0.4, elevation=0.32,
    ),
    _Hour(
        zenith=(0.58, 0.62, 0.67), horizon=(0.80, 0.82, 0.83), sun=(0.20, 0.20, 0.19),
        ambient=(0.66, 0.68, 0.70), clouds=0.85, elevation=0.95,
    ),
    _Hour(
        zenith=(0.22, 0.27, 0.48), horizon=(0.92, 0.62, 0.48), sun=(0.58, 0.36, 0.30),
        ambient=(0.33, 0.32, 0.42), clouds=0.5, elevation=0.2,
    ),
)  # fmt: skip
_SEASONS: Final = (
    _Season(
        grass=(0.33, 0.47, 0.16), straw=(0.52, 0.56, 0.24),
        leaves=((0.22, 0.38, 0.12), (0.27, 0.42, 0.13), (0.18, 0.33, 0.13)), snow=0.9,
    ),
    _Season(
        grass=(0.47, 0.46, 0.20), straw=(0.64, 0.54, 0.28),
        leaves=((0.74, 0.44, 0.10), (0.62, 0.24, 0.09), (0.66, 0.56, 0.14), (0.3, 0.34, 0.12)),
        snow=0.7,
    ),
    _Season(
        grass=(0.36, 0.52, 0.18), straw=(0.60, 0.62, 0.26),
        leaves=((0.40, 0.56, 0.17), (0.34, 0.50, 0.18), (0.86, 0.72, 0.76)), snow=0.62,
    ),
    _Season(grass=(0.84, 0.87, 0.91), straw=(0.72, 0.73, 0.72), leaves=(), snow=0.0),
)  # fmt: skip


def sample_photo(seed: int = 0, *, height: int = 480, width: int = 640) -> ImageArray:
    """A made-up landscape, uint8 [height, width, 3] sRGB; another seed is another scene.

    Layout, season and hour change from seed to seed, so that few seeds cover all of them.

    Raises:
        InputError: the seed is negative, or a side is not from 64 to 4096.
    """
    if seed < 0:
        raise InputError(f"got seed {seed}; expected 0 or more")
    for name, side in (("height", height), ("width", width)):
        if not _SMALLEST <= side <= _LARGEST:
            raise InputError(f"got {name} {side}; expected {_SMALLEST} to {_LARGEST} pixels")
    scene = _Scene(
        rng=np.random.Generator(np.random.PCG64(seed)),
        height=height,
        width=width,
        layout=_LAYOUTS[seed % 4],
        season=_SEASONS[(seed + seed // 4) % 4],
        hour=_HOURS[(seed // 2 + seed // 8) % 4],
    )
    _paint_sky(scene)
    _paint_mountains(scene)
    _paint_forest(scene)
    _paint_ground(scene)
    _place_objects(scene)
    return _develop(scene)


def sample_photos(count: int) -> list[ImageArray]:
    """The photos of seeds 0 to ``count`` - 1, each uint8 [480, 640, 3]."""
    return [sample_photo(seed) for seed in range(count)]


@dataclass(slots=True, kw_only=True)
class _Scene:
    """The canvas and what all painters share."""

    rng: np.random.Generator
    height: int
    width: int
    layout: str
    season: _Season
    hour: _Hour
    canvas: _Floats = field(init=False)  # [H,W,3]
    soft: _Floats = field(init=False)  # [tile,tile] noise as of clouds, mean 0, deviation 1
    rough: _Floats = field(init=False)  # the same, as of leaves and grass
    horizon: float = field(init=False)  # row
    focal: float = field(init=False)  # px
    side: float = field(init=False)  # where the sun stands: -1 far left to 1 far right
    ground_x: _Floats = field(init=False)  # [rows below the horizon, W], metres
    ground_z: _Floats = field(init=False)  # [rows below the horizon, 1], metres

    def __post_init__(self) -> None:
        self.canvas = np.zeros((self.height, self.width, 3))
        self.soft, self.rough = self._noise(3.2), self._noise(1.3)
        self.horizon = self.height * self.uniform(0.46, 0.56)
        self.focal = 0.95 * self.width
        self.side = self.uniform(0.35, 1.0) * (1 if self.rng.random() < 0.5 else -1)
        rows = np.arange(self.first_row, self.height)[:, None] + 0.5
        self.ground_z = self.focal * _CAMERA / np.maximum(rows - self.horizon, 0.4)
        self.ground_x = (np.arange(self.width) + 0.5 - self.width / 2) * self.ground_z / self.focal

    def _noise(self, slope: float) -> _Floats:
        """Gaussian noise whose power falls as frequency to the minus ``slope``."""
        spectrum = np.fft.rfft2(self.rng.standard_normal((_TILE, _TILE)))
        squares = np.fft.fftfreq(_TILE)[:, None] ** 2 + np.fft.rfftfreq(_TILE) ** 2
        squares[0, 0] = 1.0
        spectrum[0, 0] = 0.0
        noise = np.fft.irfft2(spectrum * squares ** (-slope / 4), s=(_TILE, _TILE))
        return noise / noise.std()

    @property
    def first_row(self) -> int:
        """The first row of ground."""
        return int(self.horizon)

    @property
    def ground(self) -> _Floats:
        """The canvas below the horizon, a view."""
        return self.canvas[self.first_row :]

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.rng.random())

    def lit(self, colour: npt.ArrayLike, light: npt.ArrayLike) -> _Floats:
        """``colour`` [...,3] under the sky and ``light`` [...], the share of the sun it gets."""
        sun = np.asarray(light)[..., None] * np.asarray(self.hour.sun)
        return np.asarray(colour) * (np.asarray(self.hour.ambient) + sun)

    def hazed(self, colour: npt.ArrayLike, distance: npt.ArrayLike) -> _Floats:
        """``colour`` [...,3] seen through the air of ``distance`` [...] metres."""
        air = 1 - np.exp(-np.asarray(distance)[..., None] / 1400.0)
        return _mix(colour, np.multiply(self.hour.horizon, 0.97), air)

    def project(self, point: Sequence[float]) -> tuple[float, float]:
        """Column and row of (X, Y, Z)."""
        scale = self.focal / point[2]
        return self.width / 2 + point[0] * scale, self.horizon + (_CAMERA - point[1]) * scale


def _mix(a: npt.ArrayLike, b: npt.ArrayLike, share: npt.ArrayLike) -> _Floats:
    first = np.asarray(a, np.float64)
    return first + (np.asarray(b) - first) * np.asarray(share)


def _step(values: npt.ArrayLike, low: float, high: float) -> _Floats:
    """Smoothly from 0 at ``low`` to 1 at ``high``."""
    t = np.clip((np.asarray(values, np.float64) - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _texture(tile: _Floats, rows: _Floats, columns: _Floats) -> _Floats:
    """The repeating ``tile`` between its pixels, bilinearly."""
    rows, columns = np.broadcast_arrays(rows, columns)
    top, left = np.floor(rows), np.floor(columns)
    y, x = rows - top, columns - left
    y0, x0 = top.astype(np.int64) % _TILE, left.astype(np.int64) % _TILE
    y1, x1 = (y0 + 1) % _TILE, (x0 + 1) % _TILE
    upper = tile[y0, x0] * (1 - x) + tile[y0, x1] * x
    lower = tile[y1, x0] * (1 - x) + tile[y1, x1] * x
    return upper * (1 - y) + lower * y


def _profile(scene: _Scene, slope: float, detail: float) -> _Floats:
    """A line of hills, [W], about 0 to 1, as rough as ``slope`` says."""
    count = 2 * scene.width
    spectrum = np.fft.rfft(scene.rng.standard_normal(count))
    frequency = np.arange(len(spectrum), dtype=np.float64)
    spectrum[0] = 0.0
    frequency[0] = 1.0
    spectrum *= (frequency + detail) ** (-slope / 2)
    line = np.fft.irfft(spectrum, n=count)[: scene.width]
    line -= line.min()
    return line / line.max()


def _paint_sky(scene: _Scene) -> None:
    """Clouds lie on a plane above, so that they shrink towards the horizon."""
    hour, rows = scene.hour, scene.first_row + 1
    y = np.arange(rows)[:, None] / scene.horizon
    x = np.arange(scene.width)[None, :] / scene.width - 0.5
    sky = _mix(hour.zenith, hour.horizon, (np.clip(y, 0, 1) ** 1.4)[..., None])
    sun_y = 0.95 - 0.9 * hour.elevation
    away = (x - 0.62 * scene.side) ** 2 + (0.6 * (y - sun_y)) ** 2
    glow = np.exp(-away / 0.05)[..., None] * (1 - hour.clouds) * 0.8
    sky = _mix(sky, np.minimum(np.multiply(hour.sun, 1.15), 1.0), glow)
    plane = 1.0 / (1.12 - np.clip(y, 0, 1))
    drift = 400 * scene.uniform(0, 1)
    v, u = 85 * plane + drift, 150 * x * (0.35 + plane) + drift
    size, fine = scene.soft, scene.rough
    density = _texture(size, v, u) + 0.16 * _texture(fine, 3 * v, 3 * u)
    beyond = _texture(size, v - 7, u + 9 * scene.side)
    edge = 1.15 - 2.1 * hour.clouds
    cover = _step(density, edge, edge + 0.95)[..., None]
    thick = _step(0.6 * density + 0.6 * beyond, edge + 0.2, edge + 2.2)[..., None]
    white = np.clip(np.add(hour.ambient, np.multiply(hour.sun, 0.72)), 0, 1)
    grey = _mix(np.multiply(hour.ambient, 1.15), hour.horizon, 0.35)
    cloud = _mix(white, grey, 0.85 * thick)
    cloud = _mix(cloud, hour.horizon, (0.75 * _step(y, 0.45, 1.0))[..., None])
    scene.canvas[:rows] = _mix(sky, cloud, 0.94 * cover)


def _paint_mountains(scene: _Scene) -> None:
    """Ridges from far to near, lit from the sun's side, fading into the air."""
    rows = np.arange(scene.first_row + 2)[:, None].astype(np.float64)
    columns = np.arange(scene.width)[None, :].astype(np.float64)
    count = 2 + int(scene.rng.random() * 2.5)
    for layer in range(count):
        near = layer / max(count - 1, 1)
        top = scene.height * scene.uniform(0.22, 0.34) * (1 - 0.62 * near)
        line = top * (0.25 + 0.75 * _profile(scene, 2.5 + 0.4 * near, 0.6))
        below = rows - (scene.horizon - line)[None, :]
        zoom = (1.3 - 0.5 * near) * 480 / scene.height
        v, u = rows * zoom + 97 * layer, columns * zoom * 1.1 + 0.35 * below + 61 * layer
        relief = 1 - np.abs(_texture(scene.soft, v, u))
        slope = relief - (1 - np.abs(_texture(scene.soft, v, u + 2.5 * scene.side)))
        fine = _texture(scene.rough, 2 * v, 2 * u)
        light = np.clip(0.5 + 2.6 * slope + 0.13 * fine, 0.04, 1.25)
        woods = np.multiply(scene.season.leaves[0] if scene.season.leaves else (0.3,) * 3, 0.62)
        rock = np.array((0.40, 0.37, 0.35))
        altitude = 1 - below / top + 0.16 * fine + 0.22 * relief
        colour = _mix(woods, rock, _step(altitude, 0.35, 0.75)[..., None])
        snow = _step(altitude + 1.1 * (0 if near > 0.6 else 0.12), scene.season.snow + 0.12,
                     scene.season.snow + 0.34)  # fmt: skip
        if scene.season.snow > 0 and near > 0.5:
            snow = snow * 0.0
        colour = _mix(colour, (0.92, 0.94, 0.97), 0.9 * snow[..., None])
        distance = 1900 * (1 - near) + 500 + 500 * np.clip(below / top, 0, 1)
        seen = scene.hazed(scene.lit(colour * (1 + 0.1 * fine[..., None]), light), distance)
        inside = np.clip(below + 0.5, 0, 1)[..., None]
        scene.canvas[: len(rows)] = _mix(scene.canvas[: len(rows)], seen, inside)


def _paint_forest(scene: _Scene) -> None:
    """The edge of a wood along the horizon."""
    rows = np.arange(scene.first_row + 2)[:, None].astype(np.float64)
    columns = np.arange(scene.width)[None, :].astype(np.float64)
    unit = scene.height / 480
    tops = 9 + 13 * _profile(scene, 1.4, 3.0) + 6 * _profile(scene, 0.7, 30.0)
    gaps = _step(_profile(scene, 2.4, 0.5), 0.25, 0.45)
    line = unit * tops * (0.25 + 0.75 * gaps)
    below = rows - (scene.horizon - line)[None, :]
    v, u = rows * 1.7 / unit, columns * 1.7 / unit
    leafy = _texture(scene.rough, v, u)
    tint = 0.5 + 0.5 * _texture(scene.soft, 0 * v + 40, 2.2 * u)
    colours = scene.season.leaves or ((0.16, 0.20, 0.16), (0.30, 0.27, 0.26))
    colour = _mix(np.multiply(colours[0], 0.8), np.multiply(colours[1], 0.8),
                  np.clip(tint, 0, 1)[..., None])  # fmt: skip
    light = np.clip(0.55 + 0.28 * leafy - 0.5 * below / (unit * 22), 0.02, 1)
    seen = scene.hazed(scene.lit(colour, light), 330.0)
    inside = np.clip(below + 0.5 + 1.2 * leafy, 0, 1)[..., None]
    scene.canvas[: len(rows)] = _mix(scene.canvas[: len(rows)], seen, inside)


def _paint_ground(scene: _Scene) -> None:
    """Grass or snow, then a road or a lake over it."""
    x, z = scene.ground_x, scene.ground_z
    season = scene.season
    pixel = z * z / (scene.focal * _CAMERA)  # metres of ground a row covers
    patches = _texture(scene.soft, 5 * z + 130, 5 * x)
    light = 0.62 + 0.1 * patches
    tufts = np.zeros_like(x)
    for zoom, strength in ((9.0, 0.10), (34.0, 0.13), (110.0, 0.13)):
        seen = strength * np.clip(1.6 - zoom * pixel / 18, 0, 1)
        tufts += seen * _texture(scene.rough, 0.55 * zoom * z, zoom * x)
    tint = np.clip(0.45 + 0.42 * patches + 0.5 * tufts, 0, 1)[..., None]
    strong = 0.35 if season.snow == 0 else 1.0
    colour = _mix(season.grass, season.straw, tint)
    colour = colour * (1 + strong * tufts[..., None])
    scene.ground[:] = scene.hazed(scene.lit(colour, light), z)
    if scene.layout == "lake":
        _paint_lake(scene)
    elif scene.layout in ("road", "village"):
        _paint_road(scene)


def _paint_road(scene: _Scene) -> None:
    x, z = scene.ground_x, scene.ground_z
    aside = np.abs(x - _road_centre(scene, z))
    scale = scene.focal / z  # px a metre
    worn = _texture(scene.rough, 30 * z, 60 * x)
    edge = aside + 0.12 * _texture(scene.rough, 8 * z, 11 * x)
    verge = np.clip((3.9 - edge) * np.minimum(scale, 6) + 0.5, 0, 1)[..., None]
    gravel = np.array((0.46, 0.41, 0.34)) * (1 + 0.14 * worn[..., None])
    scene.ground[:] = _mix(scene.ground, scene.hazed(scene.lit(gravel, 0.62), z), 0.75 * verge)
    tracks = 0.05 * np.cos(2 * np.pi * aside / 1.6)
    grey = 0.34 + tracks + 0.03 * worn + 0.04 * _texture(scene.soft, 9 * z, 9 * x)
    wet = np.array((0.97, 1.0, 1.04)) * grey[..., None]
    asphalt = np.clip((3.2 - aside) * scale + 0.5, 0, 1)[..., None]
    scene.ground[:] = _mix(scene.ground, scene.hazed(scene.lit(wet, 0.62), z), asphalt)
    dash = (np.mod(z, 9.0) < 3.6) * (z < 60)
    middle = np.clip((0.08 - aside) * scale + 0.5, 0, 1) * dash
    border = np.clip((0.07 - np.abs(aside - 2.95)) * scale + 0.5, 0, 1) * _step(-z, -90, -40)
    paint = scene.hazed(scene.lit(np.full(3, 0.86), 0.62), z)
    line = np.maximum(middle, border) * np.clip(0.85 + 0.2 * worn, 0, 1)
    scene.ground[:] = _mix(scene.ground, paint, line[..., None])


def _road_centre(scene: _Scene, z: npt.ArrayLike) -> _Floats:
    """X of the road's middle, [...], at the distance ``z`` [...]."""
    away = np.minimum(np.asarray(z, np.float64), 150.0)
    start = 1.9 if scene.layout == "road" else 3.4
    return -scene.side * (start - 0.055 * away) - scene.side * 0.0011 * (away - 5) ** 2


def _paint_lake(scene: _Scene) -> None:
    """What stands behind is mirrored; the nearer, the more one looks into the water."""
    x, z = scene.ground_x, scene.ground_z
    first, rows = scene.first_row, len(z)
    bay = _texture(scene.soft, np.full_like(x, 77.0), 3.3 * x)
    reach = _texture(scene.soft, 6 * z + 20, 6 * x)
    shore = 8.5 + 1.6 * reach + 0.5 * np.abs(x) * (x * scene.side < 0)
    far = 130 + 35 * bay
    inside = _step(z - shore, -0.25, 0.25) * _step(far - z, -2, 8)
    wave = _texture(scene.rough, 24 * z, 7 * x) + 0.7 * _texture(scene.soft, 60 * z, 14 * x)
    near = np.clip(20 / z, 0, 1)
    y = np.arange(rows)[:, None]
    mirrored = first - 1 - y * 0.93 + wave * (0.6 + 5 * near) * scene.height / 480
    mirrored = np.clip(np.rint(mirrored), 0, first - 1).astype(np.int64)
    sideways = np.arange(scene.width)[None, :] + np.rint(1.5 * wave * near).astype(np.int64)
    picture = scene.canvas[mirrored, np.clip(sideways, 0, scene.width - 1)]
    deep = scene.lit(np.array((0.10, 0.20, 0.22)), 0.6)
    water = _mix(picture * 0.93, deep, (0.18 + 0.5 * near)[..., None])
    water = water * (1 + 0.06 * wave[..., None] * (0.4 + near[..., None]))
    beach = _step(z - shore, -1.4, -0.3)[..., None] * 0.8
    sand = scene.lit(np.array((0.58, 0.52, 0.42)), 0.62 + 0.07 * wave)
    scene.ground[:] = _mix(scene.ground, sand, beach * _step(-z, -30, -20)[..., None])
    scene.ground[:] = _mix(scene.ground, water, inside[..., None])


def _place_objects(scene: _Scene) -> None:
    """Trees, houses, fences, cars and cows, from far to near."""


def _develop(scene: _Scene) -> ImageArray:
    """The lens and the sensor: blur, vignette, contrast, shot noise."""
    picture = np.clip(scene.canvas, 0, 1.2)
    padded = np.pad(picture, ((1, 1), (0, 0), (0, 0)), mode="edge")
    picture = 0.13 * (padded[:-2] + padded[2:]) + 0.74 * padded[1:-1]
    padded = np.pad(picture, ((0, 0), (1, 1), (0, 0)), mode="edge")
    picture = 0.13 * (padded[:, :-2] + padded[:, 2:]) + 0.74 * padded[:, 1:-1]
    y = np.linspace(-1, 1, scene.height)[:, None]
    x = np.linspace(-1, 1, scene.width)[None, :]
    picture = picture * (1 - 0.13 * (x * x + y * y))[..., None]
    picture = _mix(picture, _step(picture, -0.05, 1.05), 0.35)
    noise = scene.rng.standard_normal(picture.shape)
    picture = picture + noise * (0.004 + 0.011 * np.sqrt(np.clip(picture, 0, 1)))
    return np.clip(np.rint(picture * 255), 0, 255).astype(np.uint8)
