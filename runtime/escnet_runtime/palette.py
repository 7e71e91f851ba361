"""Colours for categories that stay apart, however many there are."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["PERIOD", "oklab", "palette"]

# From here on colours repeat: an 8-bit palette holds as many, and more cannot be told apart.
PERIOD = 256

_LEVELS = 18  # of each channel of the lattice that colours are chosen from
_LIGHTNESS = (0.34, 0.89)  # in OKLab: neither nearly black nor nearly white

# sRGB (linear) to LMS and LMS (cube root) to Lab: B. Ottosson, "A perceptual color space for image
# processing", 2020.
_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def oklab(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """OKLab coordinates [...,3] of sRGB colours [...,3]; lightness from 0 to 1 comes first."""
    value = rgb / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    result: NDArray[np.float64] = np.cbrt(linear @ _TO_LMS.T) @ _TO_LAB.T
    return result


def palette(n: int) -> NDArray[np.uint8]:
    """The colours of categories 0 to n-1, uint8 [n,3] sRGB; they repeat with a period of 256.

    Always the same: the first k of ``palette(n)`` are ``palette(k)``.
    """
    return _colours()[np.arange(n) % PERIOD]


@lru_cache(maxsize=1)
def _colours() -> NDArray[np.uint8]:
    """Greedy choice: each colour is the one farthest, in OKLab, from all before it."""
    levels = np.linspace(0, 255, _LEVELS).round().astype(np.uint8)
    lattice = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lab = oklab(lattice)
    usable = (lab[:, 0] > _LIGHTNESS[0]) & (lab[:, 0] < _LIGHTNESS[1])
    lattice, lab = lattice[usable], lab[usable]
    # Greys come late: a colour is to be seen over a photo, which is mostly dull.
    distance = ((lab - oklab(np.array([128, 128, 128], np.uint8))) ** 2).sum(1)
    chosen = []
    for _ in range(PERIOD):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, ((lab - lab[chosen[-1]]) ** 2).sum(1))
    return lattice[chosen]
