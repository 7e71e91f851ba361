"""Arithmetic on pictures that the painters share: noise, waves, random streams.

What decides labels uses only +, −, ×, ÷, square root, comparison and rounding on arrays, which
IEEE 754 defines to the last bit, so that label maps are the same on every processor.
"""

from collections.abc import Callable
from functools import cache
from math import cos, sin
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .words import WORLD_VERSION

__all__ = [
    "Floats",
    "blur",
    "clip",
    "frac",
    "lesser",
    "mix",
    "noise",
    "ripple",
    "stream",
    "tint",
    "turned",
    "wave",
]

Floats: TypeAlias = NDArray[np.float32]

_TILE: Final = 512  # px a side of the noise tiles; they repeat
_RIPPLE: Final = 32.0  # px, the length of waves in the tile of ripples
_STREAMS: Final = ("train", "heldout", "captions", "prompts")


def stream(name: str, *numbers: int) -> np.random.Generator:
    """Random numbers that depend on the version of the world, the name and the numbers alone."""
    seeds = (WORLD_VERSION, _STREAMS.index(name), *numbers)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seeds)))


def noise(slope: float, x: Floats, y: Floats) -> Floats:
    """Noise of mean 0 and deviation 1 at places in px; power falls as frequency^-``slope``."""
    return _sample(_tile(slope), x, y)


def ripple(period: float, x: Floats, y: Floats) -> Floats:
    """Noise of mean 0 and deviation 1 without a direction, whose waves are ``period`` px long."""
    scale = _RIPPLE / period
    return _sample(_ripple_tile(), x * scale, y * scale)


def _sample(tile: Floats, x: Floats, y: Floats) -> Floats:
    """The tile between its pixels."""
    floor_x, floor_y = np.floor(x), np.floor(y)
    across, down = x - floor_x, y - floor_y
    left, top = floor_x.astype(np.int32) & (_TILE - 1), floor_y.astype(np.int32) & (_TILE - 1)
    right = (left + 1) & (_TILE - 1)
    flat, row, below = tile.ravel(), top * _TILE, ((top + 1) & (_TILE - 1)) * _TILE
    upper = mix(flat.take(row + left), flat.take(row + right), across)
    lower = mix(flat.take(below + left), flat.take(below + right), across)
    return mix(upper, lower, down)


@cache
def _tile(slope: float) -> Floats:
    return _shaped(int(slope * 1000), lambda squares: squares ** (-slope / 4))


@cache
def _ripple_tile() -> Floats:
    """Frequencies within about a third of 1/_RIPPLE."""
    return _shaped(1, lambda squares: np.exp(-((np.log(squares * _RIPPLE**2) / 0.7) ** 2)))


def _shaped(seed: int, amplitude: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Floats:
    """A tile of Gaussian noise with an amplitude for each squared frequency (1/px²)."""
    rng = np.random.Generator(np.random.PCG64(seed))
    spectrum = np.fft.rfft2(rng.standard_normal((_TILE, _TILE)))
    y, x = np.fft.fftfreq(_TILE)[:, None], np.fft.rfftfreq(_TILE)[None, :]
    squares = x * x + y * y
    squares[0, 0] = 1.0
    shaped = spectrum * amplitude(squares)
    shaped[0, 0] = 0.0
    tile = np.fft.irfft2(shaped, s=(_TILE, _TILE))
    return np.asarray(tile / tile.std(), np.float32)


def turned(x: Floats, y: Floats, angle: float) -> tuple[Floats, Floats]:
    """Places in a frame that is turned by ``angle`` (radians)."""
    c, s = cos(angle), sin(angle)
    return c * x + s * y, c * y - s * x


def frac(x: Floats) -> Floats:
    """What is behind the decimal point, from 0 to 1."""
    return x - np.floor(x)


def clip(x: Floats, low: float, high: float) -> Floats:
    """``x`` where it lies between the limits, else the nearer limit."""
    within: Floats = np.clip(x, low, high)
    return within


def lesser(a: Floats, b: Floats) -> Floats:
    """The lesser of both, pixel by pixel."""
    least: Floats = np.minimum(a, b)
    return least


def wave(x: Floats) -> Floats:
    """A triangle wave of period 1: 0 at whole numbers, 1 between them."""
    return 1 - np.abs(2 * frac(x) - 1)


def mix(a: Floats, b: Floats, share: Floats | float) -> Floats:
    """``a`` with a share of ``b``."""
    return a + (b - a) * share


def tint(colour: tuple[float, float, float]) -> Floats:
    """A colour as [3,1,1], to be spread over a picture [3,H,W]."""
    return np.asarray(colour, np.float32)[:, None, None]


def blur(picture: Floats, weight: float) -> Floats:
    """[3,H,W], each pixel mixed with its four neighbours, whose weights are ``weight``."""
    padded = np.pad(picture, ((0, 0), (1, 1), (0, 0)), mode="edge")
    picture = (1 - 2 * weight) * picture + weight * (padded[:, 2:] + padded[:, :-2])
    padded = np.pad(picture, ((0, 0), (0, 0), (1, 1)), mode="edge")
    return (1 - 2 * weight) * picture + weight * (padded[:, :, 2:] + padded[:, :, :-2])
