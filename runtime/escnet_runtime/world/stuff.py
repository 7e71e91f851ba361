"""The surfaces behind the objects: floors, walls, ground, water and sky.

A painter gets places on its surface, [H,W] in px as if seen from straight above or in front, and
how much of the fine detail survives there (1 near, towards 0 far away); it gives colours [3,H,W].
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from .fields import Floats, clip, lesser, mix, noise, ripple, tint, wave

__all__ = ["PAINTERS"]

_Rgb = tuple[float, float, float]


def _pick(rng: np.random.Generator, *colours: _Rgb) -> Floats:
    """One of the colours, a little changed."""
    chosen = colours[int(rng.integers(len(colours)))]
    jitter = rng.uniform(-0.03, 0.03, 3)
    return tint(chosen) + np.asarray(jitter, np.float32)[:, None, None]


def _cells(rng: np.random.Generator, column: Floats, row: Floats) -> Floats:
    """A random number from -1 to 1 for each cell of a grid."""
    table = rng.uniform(-1, 1, (64, 64)).astype(np.float32)
    found: Floats = table[row.astype(np.intp) & 63, column.astype(np.intp) & 63]
    return found


def _moved(rng: np.random.Generator, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Another part of the endless surface."""
    dx, dy = rng.integers(0, 4096, 2).tolist()
    return x + dx, y + dy


def _gap(distance: Floats, width: float) -> Floats:
    """1 on a line ``distance`` px away, with soft sides."""
    return clip(width / 2 + 0.5 - distance, 0, 1)


def _wooden_floor(rng: np.random.Generator, x: Floats, y: Floats, detail: Floats) -> Floats:
    x, y = _moved(rng, x, y)
    width, length = rng.uniform(12, 22), rng.uniform(70, 130)
    plank = np.floor(y / width)
    along = x / length + 0.37 * plank
    tone = _cells(rng, np.floor(along), plank)
    grain = noise(1.6, x * 0.12 + 31 * plank, y * 1.4)
    edge = lesser(wave(y / width) * (width / 2), wave(along) * (length / 2))
    base = _pick(rng, (0.62, 0.42, 0.25), (0.50, 0.33, 0.20), (0.72, 0.55, 0.36))
    light: Floats = 1 + 0.11 * tone + 0.085 * grain * detail - 0.45 * _gap(edge, 0.9) * detail
    return base * light


def _tiled_floor(rng: np.random.Generator, x: Floats, y: Floats, detail: Floats) -> Floats:
    x, y = _moved(rng, x, y)
    side = rng.uniform(22, 36)
    tone = _cells(rng, np.floor(x / side), np.floor(y / side))
    edge = lesser(wave(x / side), wave(y / side)) * (side / 2)
    base = _pick(rng, (0.66, 0.62, 0.56), (0.60, 0.50, 0.42), (0.55, 0.60, 0.62))
    light = 1 + 0.05 * tone + 0.05 * noise(2.4, x, y) * detail
    grout = _pick(rng, (0.40, 0.38, 0.36), (0.84, 0.82, 0.78))
    return mix(base * light, grout, 0.8 * _gap(edge, 1.6) * detail)


def _brick_wall(rng: np.random.Generator, x: Floats, y: Floats, detail: Floats) -> Floats:
    x, y = _moved(rng, x, y)
    high = rng.uniform(8, 13)
    wide = 2.3 * high
    row = np.floor(y / high)
    along = x / wide + 0.5 * (row % 2)
    tone = _cells(rng, np.floor(along), row)
    edge = lesser(wave(y / high) * (high / 2), wave(along) * (wide / 2))
    base = _pick(rng, (0.58, 0.31, 0.23), (0.52, 0.36, 0.28), (0.64, 0.42, 0.32))
    light = 1 + 0.14 * tone + 0.10 * noise(1.3, x, y)
    mortar = _pick(rng, (0.72, 0.68, 0.62), (0.58, 0.55, 0.52))
    return mix(base * light, mortar, _gap(edge, 1.3) * detail)


def _plaster_wall(rng: np.random.Generator, x: Floats, y: Floats, detail: Floats) -> Floats:
    x, y = _moved(rng, x, y)
    paints = ((0.80, 0.76, 0.66), (0.70, 0.75, 0.78), (0.76, 0.68, 0.62), (0.70, 0.74, 0.64))
    stains, grain = noise(3.2, x * 0.6, y * 0.6), noise(1.0, x, y)
    return _pick(rng, *paints) * (1 + 0.045 * stains + 0.022 * grain * detail)


def _grassy_field(rng: np.random.Generator, x: Floats, y: Floats, detail: Floats) -> Floats:
    x, y = _moved(rng, x, y)
    blades = noise(1.0, x * 1.3, y * 0.5)
    patches = noise(2.8, x * 0.7, y * 0.7)
    green = _pick(rng, (0.33, 0.47, 0.17), (0.40, 0.50, 0.22), (0.28, 0.42, 0.17))
    straw = tint((0.60, 0.58, 0.32))
    colours = mix(green, straw, clip(0.12 + 0.14 * patches, 0, 0.5))
    light: Floats = 1 + 0.20 * blades * (0.35 + 0.65 * detail)
    return colours * light


def _sandy_beach(rng: np.random.Generator, x: Floats, y: Floats, detail: Floats) -> Floats:
    x, y = _moved(rng, x, y)
    base = _pick(rng, (0.82, 0.71, 0.52), (0.76, 0.66, 0.50), (0.86, 0.77, 0.60))
    bend = 5 * noise(3.2, x * 0.5, y * 0.5)
    ripples = wave((y + bend) / rng.uniform(9, 14)) - 0.5
    light: Floats = 1 + 0.09 * ripples * detail + 0.05 * noise(0.6, x, y) + 0.03 * noise(2.8, x, y)
    return base * light


def _gravel_path(rng: np.random.Generator, x: Floats, y: Floats, detail: Floats) -> Floats:
    x, y = _moved(rng, x, y)
    stones = ripple(5.0, x, y) + 0.6 * ripple(11.0, y, x) + 0.6 * noise(0.6, x, y)
    base = _pick(rng, (0.52, 0.50, 0.48), (0.46, 0.45, 0.46), (0.58, 0.53, 0.47))
    depth: Floats = clip(stones, -2.0, 1.6) * (0.3 + 0.7 * detail)
    light: Floats = 0.95 + 0.15 * depth
    return base * light


def _snowy_ground(rng: np.random.Generator, x: Floats, y: Floats, detail: Floats) -> Floats:
    x, y = _moved(rng, x, y)
    hollows = noise(3.4, x * 0.8, y * 0.8)
    light = 0.95 + 0.05 * hollows + 0.018 * noise(0.8, x, y) * detail
    shade = tint((0.66, 0.75, 0.90))
    return mix(tint((0.90, 0.93, 0.97)), shade, clip(0.22 - 0.25 * hollows, 0, 0.8)) * light


def _calm_sea(rng: np.random.Generator, x: Floats, y: Floats, detail: Floats) -> Floats:
    x, y = _moved(rng, x, y)
    base = _pick(rng, (0.13, 0.36, 0.50), (0.16, 0.42, 0.48), (0.20, 0.38, 0.56))
    swell = noise(2.2, x * 0.35, y * 1.5)
    glints = clip(noise(1.4, x * 0.4, y * 1.6) - 1.3, 0, 1)
    return base * (1 + 0.20 * swell) + 0.35 * glints * (0.4 + 0.6 * detail)


def _cloudy_sky(rng: np.random.Generator, x: Floats, y: Floats, detail: Floats) -> Floats:
    high = clip(y * (1 / 128), 0, 1)
    x, y = _moved(rng, x, y)
    clear = mix(tint((0.36, 0.58, 0.86)), tint((0.74, 0.85, 0.94)), high)
    cloud = clip(noise(3.3, x * 0.8, y * 1.5) * 0.5 + rng.uniform(-0.2, 0.35), 0, 0.9)
    shade = 1 + 0.03 * noise(2.6, x, y)
    return mix(clear, tint((0.95, 0.95, 0.96)), cloud) * shade


_Painter = Callable[[np.random.Generator, Floats, Floats, Floats], Floats]
PAINTERS: Final[Mapping[str, _Painter]] = {
    "wooden floor": _wooden_floor,
    "tiled floor": _tiled_floor,
    "brick wall": _brick_wall,
    "plaster wall": _plaster_wall,
    "grassy field": _grassy_field,
    "sandy beach": _sandy_beach,
    "gravel path": _gravel_path,
    "snowy ground": _snowy_ground,
    "calm sea": _calm_sea,
    "cloudy sky": _cloudy_sky,
}
