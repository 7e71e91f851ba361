"""Landscapes that look like photos, made from a seed: the package needs no pictures of its own.

Parity is measured on pictures with the statistics of photos: spectra near 1/f, occlusion, texture
that shrinks with distance, haze, shadows, sensor noise. A scene is painted from far to near through
one pinhole camera: X is metres to the right, Y up, Z away from the camera. Colours are display
values from 0 to 1. Arithmetic is float64, random numbers come from PCG64, so a seed gives the same
picture everywhere up to the last bit of the C library's mathematics.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from escnet_runtime.errors import InputError
from escnet_runtime.images import ImageArray

__all__ = ["SAMPLE_CATEGORIES", "sample_photo", "sample_photos"]

SAMPLE_CATEGORIES: Final[tuple[str, ...]] = (
    *("sky", "cloud", "mountain", "tree", "grass", "road"),
    *("house", "lake", "car", "cow", "fence", "snow"),
)

_Floats = npt.NDArray[np.float64]
_Rgb = tuple[float, float, float]
_Outline = Sequence[tuple[float, float]]
_Shape = tuple[_Outline, _Floats]  # and its lit colour
_Branch = tuple[tuple[float, float], tuple[float, float], float]  # from, to, thickness

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
        zenith=(0.30, 0.52, 0.80), horizon=(0.74, 0.84, 0.91), sun=(0.86, 0.82, 0.72),
        ambient=(0.38, 0.43, 0.52), clouds=0.45, elevation=0.85,
    ),
    _Hour(
        zenith=(0.40, 0.56, 0.76), horizon=(0.97, 0.82, 0.62), sun=(1.02, 0.74, 0.44),
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
        noise: _Floats = np.fft.irfft2(spectrum * squares ** (-slope / 4), s=(_TILE, _TILE))
        noise /= noise.std()
        return noise

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
        seen: _Floats = np.asarray(colour) * (np.asarray(self.hour.ambient) + sun)
        return seen

    def hazed(self, colour: npt.ArrayLike, distance: npt.ArrayLike) -> _Floats:
        """``colour`` [...,3] seen through the air of ``distance`` [...] metres."""
        air = 1 - np.exp(-np.asarray(distance)[..., None] / 1400.0)
        return _mix(colour, np.multiply(self.hour.horizon, 0.97), air)

    def project(self, point: Sequence[float]) -> tuple[float, float]:
        """Column and row of (X, Y, Z)."""
        scale = self.focal / point[2]
        return self.width / 2 + point[0] * scale, self.horizon + (_CAMERA - point[1]) * scale


_Painter = Callable[[_Scene, float, float], None]


def _mix(a: npt.ArrayLike, b: npt.ArrayLike, share: npt.ArrayLike) -> _Floats:
    first = np.asarray(a, np.float64)
    mixed: _Floats = first + (np.asarray(b) - first) * np.asarray(share)
    return mixed


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
    line: _Floats = np.fft.irfft(spectrum, n=count)[: scene.width]
    line -= line.min()
    line /= line.max()
    return line


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
        light = np.clip(0.42 + 4.2 * slope + 0.13 * fine, 0.04, 1.25)
        woods = np.multiply(scene.season.leaves[0] if scene.season.leaves else (0.3,) * 3, 0.62)
        rock = np.array((0.40, 0.37, 0.35))
        altitude = 1 - below / top + 0.16 * fine + 0.22 * relief
        colour = _mix(woods, rock, _step(altitude, 0.35, 0.75)[..., None])
        line_of_snow = scene.season.snow + (0.1 if near < 0.5 else 9.0 * (scene.season.snow > 0))
        snow = _step(altitude, line_of_snow, line_of_snow + 0.3)
        colour = _mix(colour, (0.92, 0.94, 0.97), 0.9 * snow[..., None])
        distance = 1100 * (1 - near) + 350 + 500 * np.clip(below / top, 0, 1)
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
    scene.ground[:] = scene.hazed(scene.lit(colour, light), np.minimum(z, 330.0))
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
    """Trees, houses, fences, cars and cows: all shadows, then all objects from far to near."""
    items = _arrangement(scene)
    for painter, x, z in items:
        if painter is not _paint_fence:
            _paint_shadow(scene, x, z, 2.6 if painter in (_paint_tree, _paint_house) else 1.1)
    for painter, x, z in sorted(items, key=lambda item: -item[2]):
        painter(scene, x, z)


def _arrangement(scene: _Scene) -> list[tuple[_Painter, float, float]]:
    """What stands where: painter, X, Z."""
    uniform, side = scene.uniform, scene.side / abs(scene.side)
    items: list[tuple[_Painter, float, float]] = []
    trees = {"road": 13, "lake": 9, "meadow": 7, "village": 8}[scene.layout]
    for index in range(trees):
        z = 13 + 75 * (index + scene.uniform(0, 1)) / trees
        x = uniform(-0.55, 0.55) * z
        if scene.layout == "lake":  # one on the near shore, the others across the water
            z = uniform(6.3, 7.3) if index == 0 else uniform(172, 200)
            x = side * uniform(0.34, 0.48) * z if index == 0 else uniform(-0.5, 0.5) * z
        if scene.layout in ("road", "village"):
            middle = float(_road_centre(scene, z))
            x = middle + (6.5 + uniform(0, 0.3) * z) * (1 if uniform(0, 1) < 0.55 else -1)
        elif scene.layout == "meadow" and index == 0:
            x = side * uniform(0.3, 0.45) * z
        items.append((_paint_tree, x, z))
    if scene.layout == "village":
        for index, z in enumerate((24.0, 36.0, 52.0)):
            away = 10.5 if index % 2 else -10.5
            items.append((_paint_house, float(_road_centre(scene, z)) + away * side, z))
        items.append((_paint_parked_car, float(_road_centre(scene, 15.0)) + 5.2 * side, 15.0))
    if scene.layout == "road":
        z = uniform(15, 24)
        items.append((_paint_car, float(_road_centre(scene, z)) + 1.5, z))
        items.append((_paint_house, float(_road_centre(scene, 62.0)) - 19 * side, 62.0))
    if scene.layout == "meadow":
        items.append((_paint_house, -side * uniform(9, 13), uniform(38, 50)))
        items.append((_paint_fence, 0.0, uniform(22, 28)))
        items += [(_paint_cow, uniform(-0.35, 0.35) * z, z) for z in (11.0, 14.5, 18.0, 19.5)]
    return items


def _paint_shadow(scene: _Scene, x: float, z: float, radius: float) -> None:
    """Away from the sun, the longer the lower it stands, and dark where an object meets ground."""
    hour = scene.hour
    reach = radius * min(1.2 / hour.elevation, 4.0)
    x0 = x - np.sign(scene.side) * reach * 0.8
    ragged = _texture(scene.rough, 14 * scene.ground_z, 14 * scene.ground_x)
    ragged = np.maximum(1 + 0.25 * ragged, 0.4)
    dz = (scene.ground_z - z) / (0.55 * radius)
    cast = _step(-(((scene.ground_x - x0) / reach) ** 2 + dz**2) * ragged, -1.3, -0.4)
    contact = np.exp(-(((scene.ground_x - x) / radius) ** 2 + (2 * dz) ** 2) * 2)
    strength = 0.62 * max(hour.sun) / (max(hour.sun) + max(hour.ambient))
    dark = np.maximum(strength * cast, 0.35 * contact)[..., None]
    scene.ground[:] = _mix(scene.ground, scene.ground * np.array((0.1, 0.14, 0.22)), dark)


def _blend(scene: _Scene, rgb: _Floats, alpha: _Floats, left: int, top: int) -> None:
    """Lay ``rgb`` [h,w,3] over the canvas as far as it reaches into it."""
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + alpha.shape[1], scene.width), min(top + alpha.shape[0], scene.height)
    if x0 >= x1 or y0 >= y1:
        return
    part = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
    under = scene.canvas[y0:y1, x0:x1]
    under[:] = _mix(under, rgb[part], alpha[part][..., None])


def _draw(scene: _Scene, z: float, shapes: Sequence[_Shape], *, grain: float = 0.05) -> None:
    """Polygons in pixels and their lit colours, later ones on top, smoothed and textured."""
    corners = np.array([corner for outline, _ in shapes for corner in outline])
    low = np.clip(np.floor(corners.min(0)), -scene.width, 2 * scene.width).astype(int)
    high = np.clip(np.ceil(corners.max(0)) + 1, -scene.width, 2 * scene.width).astype(int)
    width, height = (int(side) for side in np.maximum(high - low, 1))
    sheet = Image.new("RGBA", (width * _SAMPLING, height * _SAMPLING))
    pen = ImageDraw.Draw(sheet)
    for outline, colour in shapes:
        seen = np.clip(np.rint(scene.hazed(colour, z) * 230), 0, 255).astype(int)
        points = [((x - low[0]) * _SAMPLING, (y - low[1]) * _SAMPLING) for x, y in outline]
        pen.polygon(points, fill=(int(seen[0]), int(seen[1]), int(seen[2]), 255))
    pixels = np.asarray(sheet.reduce(_SAMPLING), np.float64)
    offset = int(scene.uniform(0, _TILE))
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    noise = scene.rough[(rows + offset) % _TILE, (columns + 3 * offset) % _TILE]
    shade = 1 + grain * noise + 0.1 - 0.2 * rows / height
    _blend(scene, pixels[..., :3] / 230 * shade[..., None], pixels[..., 3] / 255, *low.tolist())


def _paint_tree(scene: _Scene, x: float, z: float) -> None:
    conifer = scene.uniform(0, 1) < (0.25 if scene.season.leaves else 0.6)
    tall = scene.uniform(8, 13) if conifer else scene.uniform(6.5, 9.5)
    unit = tall * scene.focal / z  # px
    foot = scene.project((x, 0.0, z))
    bare = not (conifer or scene.season.leaves)
    wood = scene.lit(np.multiply(_WOOD, 0.9 if bare else 1.0), 0.35)
    branches = [((0.0, 0.0), (0.0, 0.35), 0.03)]
    _grow(scene, branches, (0.0, 0.3), np.pi / 2, 0.19 if bare else 0.15, 6 if bare else 3)
    shapes = [
        (_limb(foot, unit, *branch), wood) for branch in (branches[:1] if conifer else branches)
    ]
    _draw(scene, z, shapes, grain=0.15)
    if bare:
        return
    puffs = _conifer(scene) if conifer else _crown(scene)
    colours = scene.season.leaves
    colour: _Rgb = (0.13, 0.23, 0.13)
    if not conifer:
        colour = colours[int(scene.rng.random() * len(colours))]
    _paint_foliage(scene, puffs, colour, foot, unit, z)


def _grow(
    scene: _Scene, branches: list[_Branch], start: tuple[float, float], angle: float,
    length: float, depth: int,
) -> None:  # fmt: skip
    """A branch and its boughs, in heights of the tree."""
    end = (start[0] + length * np.cos(angle), start[1] + length * np.sin(angle))
    branches.append((start, end, 0.11 * length))
    if depth:
        for turn in (-0.5, 0.05, 0.5):
            if turn == 0.05 and depth % 2:
                continue
            bent = angle + turn + scene.uniform(-0.25, 0.25)
            _grow(scene, branches, end, bent, length * scene.uniform(0.66, 0.86), depth - 1)


def _limb(
    foot: tuple[float, float], unit: float, start: tuple[float, float], end: tuple[float, float],
    thick: float,
) -> list[tuple[float, float]]:  # fmt: skip
    (x0, y0), (x1, y1) = start, end
    length = float(np.hypot(x1 - x0, y1 - y0))
    half = max(thick / 2, 0.16 / unit)
    across = (y0 - y1) / length * half, (x1 - x0) / length * half
    corners = ((x0, y0, 1), (x1, y1, 0.6), (x1, y1, -0.6), (x0, y0, -1))
    return [
        (foot[0] + unit * (x + s * across[0]), foot[1] - unit * (y + s * across[1]))
        for x, y, s in corners
    ]


def _crown(scene: _Scene) -> _Floats:
    """Tufts of a broad-leaved tree, [n,4]: x, y, radius, nearness, in heights of the tree."""
    angle = 2 * np.pi * scene.rng.random(46)
    reach = np.sqrt(scene.rng.random(46))
    wide = scene.uniform(0.26, 0.36)
    x, y = wide * reach * np.cos(angle), 0.64 + 0.27 * reach * np.sin(angle)
    radius = 0.055 + 0.065 * scene.rng.random(46)
    return np.stack([x, y, radius, 0.25 * (1 - reach**2) + 0.1 * scene.rng.random(46)], 1)


def _conifer(scene: _Scene) -> _Floats:
    """The same of a conifer: tiers that widen downwards."""
    y = 0.1 + 0.88 * np.sort(scene.rng.random(90))
    wide = 0.21 * (1 - y) + 0.008
    x = wide * (2 * scene.rng.random(90) - 1)
    radius = 0.014 + 0.042 * (1 - y) + 0.012 * scene.rng.random(90)
    return np.stack([x, y - 0.2 * np.abs(x), radius, wide - np.abs(x)], 1)


def _paint_foliage(
    scene: _Scene, puffs: _Floats, colour: _Rgb, foot: tuple[float, float], unit: float, z: float
) -> None:
    """Balls with ragged edges, each lit from the sun's side; the nearest one is seen."""
    left, top = round(foot[0] - 0.5 * unit), round(foot[1] - 1.1 * unit)
    side = int(1.1 * unit) + 2
    front, light = np.zeros((side, side)), np.zeros((side, side))
    start = int(scene.uniform(0, _TILE))
    index = (np.arange(side) + start) % _TILE
    leafy = scene.rough[index][:, index]
    for x, y, radius, nearness in puffs:
        cx, cy = foot[0] + x * unit - left, foot[1] - y * unit - top
        r = max(radius * unit, 0.8)
        y0, y1 = max(int(cy - 1.5 * r), 0), min(int(cy + 1.5 * r) + 2, side)
        x0, x1 = max(int(cx - 1.5 * r), 0), min(int(cx + 1.5 * r) + 2, side)
        dx = (np.arange(x0, x1)[None, :] - cx) / r
        dy = (np.arange(y0, y1)[:, None] - cy) / r
        height2 = 1 - dx * dx - dy * dy + 0.5 * leafy[y0:y1, x0:x1]
        depth = np.where(height2 > 0, nearness + radius * np.sqrt(np.clip(height2, 0, 1)), 0)
        shade = 0.45 + 0.34 * dx * np.sign(scene.side) - 0.42 * dy * scene.hour.elevation
        nearest = depth > front[y0:y1, x0:x1]
        front[y0:y1, x0:x1][nearest] = depth[nearest]
        light[y0:y1, x0:x1][nearest] = shade[nearest]
    rows = (foot[1] - top - np.arange(side))[:, None] / unit  # 0 at the foot, 1 at the top
    light = np.clip(light * (0.45 + 0.75 * rows) + 0.13 * leafy, 0.0, 1.1)
    snow = 0.85 * _step(light, 0.5, 0.7) * (scene.season.snow == 0)
    leaf = _mix(colour, (0.9, 0.93, 0.96), snow[..., None])
    leaf = leaf * np.clip(1 + 0.12 * leafy - 0.25 * (light < 0.12), 0.3, 1.5)[..., None]
    seen = scene.hazed(scene.lit(leaf, light), z)
    _blend(scene, seen, np.where(front > 0, 0.97, 0.0), left, top)


def _paint_house(scene: _Scene, x: float, z: float) -> None:
    """A gabled house, its long side towards the camera and one gable towards the middle."""
    uniform = scene.uniform
    length, depth, wall, roof = uniform(9, 12), 7.0, uniform(3.0, 5.2), uniform(2.2, 3.2)
    yaw = uniform(0.3, 0.6) * (1 if x < 0 else -1)
    end = 1.0 if x < 0 else -1.0  # the gable that is seen

    def at(u: float, v: float, y: float) -> tuple[float, float]:
        """Pixels of a place along and across the house, from -1 to 1, at a height in metres."""
        along, across = u * length / 2, v * depth / 2
        right = x + along * np.cos(yaw) - across * np.sin(yaw)
        return scene.project((right, y, z + along * np.sin(yaw) + across * np.cos(yaw)))

    paints = ((0.86, 0.82, 0.72), (0.80, 0.78, 0.76), (0.66, 0.36, 0.27), (0.84, 0.72, 0.50))
    paint = paints[int(scene.rng.random() * len(paints))]
    tiles = (0.90, 0.92, 0.95) if scene.season.snow == 0 else (0.46, 0.22, 0.16)
    sunny = np.sign(scene.side) == end
    eaves, ridge, stack = wall - 0.35, wall + roof, wall + roof + 0.9
    front = [at(-1, -1, 0), at(1, -1, 0), at(1, -1, wall), at(-1, -1, wall)]
    gable = [at(end, v, y) for v, y in ((-1, 0), (1, 0), (1, wall), (0, ridge), (-1, wall))]
    chimney = [
        at(u, 0.2, y) for u, y in ((-0.5, wall), (-0.36, wall), (-0.36, stack), (-0.5, stack))
    ]
    slope = [
        at(-1.06, -1.16, eaves),
        at(1.06, -1.16, eaves),
        at(1.06, 0, ridge),
        at(-1.06, 0, ridge),
    ]
    shapes: list[_Shape] = [
        (front, scene.lit(paint, 0.5)),
        (gable, scene.lit(paint, 0.85 if sunny else 0.12)),
        (chimney, scene.lit((0.5, 0.3, 0.25), 0.4)),
        (slope, scene.lit(tiles, 0.7)),
        *_openings(scene, at, end, floors=(0.9, 3.3) if wall > 4.9 else (0.9,)),
    ]
    _draw(scene, z, shapes, grain=0.045)


def _openings(
    scene: _Scene,
    at: Callable[[float, float, float], tuple[float, float]],
    end: float,
    *,
    floors: Sequence[float],
) -> list[_Shape]:
    """Windows of both walls, lit at dusk, and the door."""
    dusk = scene.hour.elevation < 0.25
    pane = np.array((0.98, 0.80, 0.45)) if dusk else scene.lit((0.16, 0.20, 0.26), 0.3)
    frame = scene.lit((0.88, 0.87, 0.84), 0.5)
    door = [at(-0.08, -1, 0), at(0.08, -1, 0), at(0.08, -1, 2.1), at(-0.08, -1, 2.1)]
    shapes: list[_Shape] = [(door, scene.lit((0.34, 0.20, 0.14), 0.4))]
    for sill in floors:
        for colour, rim in ((frame, 0.09), (pane, 0.0)):
            low, high = sill - rim, sill + 1.3 + rim
            for u in (-0.75, -0.32, 0.32, 0.75):
                a, b = u - 0.09 - rim / 3, u + 0.09 + rim / 3
                corners = ((a, low), (b, low), (b, high), (a, high))
                shapes.append(([at(across, -1, y) for across, y in corners], colour))
            half = 0.2 + rim / 3
            corners = ((-half, low), (half, low), (half, high), (-half, high))
            shapes.append(([at(end, across, y) for across, y in corners], colour))
    return shapes


def _board(
    scene: _Scene, x: float, z: float, parts: Sequence[tuple[_Outline, _Rgb, float]]
) -> None:
    """A flat figure that faces the camera: outlines in metres, colours, shares of sun."""
    shapes: list[_Shape] = [
        ([scene.project((x + dx, y, z)) for dx, y in outline], scene.lit(colour, light))
        for outline, colour, light in parts
    ]
    _draw(scene, z, shapes)


def _oval(x: float, y: float, rx: float, ry: float) -> _Outline:
    angles = np.linspace(0, 2 * np.pi, 25)[:-1]
    return [(x + rx * float(np.cos(a)), y + ry * float(np.sin(a))) for a in angles]


def _bar(x: float, y: float, wide: float, high: float) -> _Outline:
    """A rectangle from its middle and whole sides."""
    return [
        (x + sx * wide / 2, y + sy * high / 2) for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1))
    ]


def _car_paint(scene: _Scene) -> _Rgb:
    paints = ((0.62, 0.10, 0.09), (0.75, 0.77, 0.80), (0.12, 0.24, 0.48), (0.85, 0.85, 0.84))
    return paints[int(scene.rng.random() * len(paints))]


def _paint_car(scene: _Scene, x: float, z: float) -> None:
    """A car seen from behind."""
    paint, black, glass = _car_paint(scene), (0.05, 0.05, 0.06), (0.16, 0.19, 0.22)
    body = [(0.9, 0.3), (0.94, 0.6), (0.92, 0.86), (0.74, 0.98), (0.6, 1.38), (0.45, 1.46)]
    pane = [(0.62, 1.0), (0.52, 1.32), (0.42, 1.37)]
    lamp, plate = (0.75, 0.05, 0.05), (0.85, 0.83, 0.7)
    parts: list[tuple[_Outline, _Rgb, float]] = [
        (_bar(side * 0.72, 0.2, 0.24, 0.42), black, 0.1) for side in (-1, 1)
    ]
    parts.append((body + [(-u, y) for u, y in reversed(body)], paint, 0.6))
    parts.append((pane + [(-u, y) for u, y in reversed(pane)], glass, 0.7))
    parts.append((_bar(0, 0.36, 1.76, 0.16), black, 0.5))
    parts += [(_bar(side * 0.76, 0.8, 0.26, 0.16), lamp, 0.9) for side in (-1, 1)]
    parts.append((_bar(0, 0.62, 0.5, 0.12), plate, 0.5))
    _board(scene, x, z, parts)


def _paint_parked_car(scene: _Scene, x: float, z: float) -> None:
    """A car seen from its side."""
    paint, black, glass = _car_paint(scene), (0.05, 0.05, 0.06), (0.16, 0.19, 0.22)
    body = [
        *((-2.15, 0.35), (-2.16, 0.7), (-2.0, 0.9), (-1.4, 0.98), (-0.8, 1.4), (-0.4, 1.48)),
        *((0.5, 1.48), (0.9, 1.36), (1.5, 1.0), (2.05, 0.92), (2.17, 0.7), (2.15, 0.32)),
    ]
    parts: list[tuple[_Outline, _Rgb, float]] = [
        (body, paint, 0.6),
        ([(-1.18, 0.99), (-0.7, 1.35), (-0.08, 1.4), (-0.08, 0.99)], glass, 0.7),
        ([(0.03, 0.99), (0.03, 1.4), (0.5, 1.4), (0.82, 1.28), (1.2, 0.99)], glass, 0.7),
        (_bar(0, 0.36, 4.2, 0.12), black, 0.4),
    ]
    for wheel in (-1.35, 1.35):
        parts += [(_oval(wheel, 0.33, 0.38, 0.38), black, 0.2), (_oval(wheel, 0.33, 0.2, 0.2),
                  (0.6, 0.6, 0.62), 0.4)]  # fmt: skip
    _board(scene, x, z, parts)


def _paint_cow(scene: _Scene, x: float, z: float) -> None:
    """Grazing or looking up, brown or black and white."""
    hide: _Rgb = (0.34, 0.18, 0.10) if scene.uniform(0, 1) < 0.5 else (0.10, 0.09, 0.09)
    patch: _Rgb = (0.84, 0.81, 0.76)
    way = 1.0 if scene.uniform(0, 1) < 0.5 else -1.0
    head = 0.45 if scene.uniform(0, 1) < 0.6 else 1.5
    back = [(-1.0, 1.38), (-1.08, 1.0), (-0.9, 0.72), (-0.2, 0.62), (0.6, 0.7), (0.85, 0.9)]
    body = [*back, (1.0, 1.25), (0.8, 1.44), (0.0, 1.36), (-0.7, 1.42)]
    legs: list[tuple[_Outline, _Rgb, float]] = [
        (_bar(leg, 0.38, 0.16, 0.8), hide, light)
        for leg, light in ((-0.66, 0.05), (0.44, 0.05), (-0.88, 0.3), (0.66, 0.3))
    ]
    neck = [(0.6, 1.42), (0.95, 1.36), (1.42, head + 0.14), (1.25, head - 0.1), (0.85, 0.85)]
    blot = [(-0.7, 1.41), (-0.1, 1.37), (-0.02, 1.1), (-0.3, 0.92), (-0.62, 1.08)]
    parts = [
        *legs,
        (neck, hide, 0.4), (body, hide, 0.45), (_oval(1.42, head, 0.25, 0.16), hide, 0.5),
        (blot, patch, 0.5), (_oval(0.1, 0.72, 0.4, 0.07), patch, 0.2),
        ([(0.3, 1.38), (0.62, 1.42), (0.6, 1.05), (0.42, 0.98)], patch, 0.5),
        (_oval(1.56, head - 0.05, 0.1, 0.09), patch, 0.4),
        (_bar(-1.08, 0.95, 0.05, 0.8), hide, 0.2),
    ]  # fmt: skip
    _board(scene, x, z, [([(way * u, y) for u, y in o], c, light) for o, c, light in parts])


def _paint_fence(scene: _Scene, _: float, z: float) -> None:
    """Posts and two rails across the picture, at a slant."""
    slant, reach = 0.16 * scene.side, 0.62 * z
    places = [(x, z + slant * x) for x in np.arange(-reach, reach, 2.4).tolist()]
    wood = scene.lit((0.42, 0.36, 0.30), 0.45)
    shapes: list[_Shape] = []
    for y in (0.5, 0.95):
        for (x0, z0), (x1, z1) in pairwise(places):
            outline = (
                (x0, y - 0.05, z0),
                (x1, y - 0.05, z1),
                (x1, y + 0.05, z1),
                (x0, y + 0.05, z0),
            )
            shapes.append(([scene.project(corner) for corner in outline], wood))
    for x, far in places:
        outline = (
            (x - 0.08, 0, far),
            (x + 0.08, 0, far),
            (x + 0.08, 1.2, far),
            (x - 0.08, 1.2, far),
        )
        shapes.append(([scene.project(corner) for corner in outline], wood))
    _draw(scene, z, shapes, grain=0.12)


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
