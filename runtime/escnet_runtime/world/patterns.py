"""The textures of objects: how much of a second tone, the ink, lies on each pixel.

A pattern is [H,W] from 0 (the object's colour) to 1 (ink). Places are px in the object's own
frame. Ink covers less than half of an object, except in a checkered one, so that the colour stays
the object's colour.
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from .fields import Floats, clip, frac, ripple, wave

__all__ = ["INKS", "PATTERNS"]

_Rgb = tuple[float, float, float]


def _plain(rng: np.random.Generator, x: Floats, y: Floats, depth: Floats, radius: float) -> Floats:
    return np.zeros_like(x)


def _striped(
    rng: np.random.Generator, x: Floats, y: Floats, depth: Floats, radius: float
) -> Floats:
    period = max(6.0, radius * rng.uniform(0.34, 0.46))
    return clip((wave(x / period + rng.random()) - 0.56) * (period / 2) + 0.5, 0, 1)


def _dotted(rng: np.random.Generator, x: Floats, y: Floats, depth: Floats, radius: float) -> Floats:
    period = max(6.2, radius * rng.uniform(0.34, 0.44))
    row = y / period + rng.random()
    column = x / period + rng.random() + 0.5 * (np.floor(row) % 2)
    dx, dy = frac(column) - 0.5, frac(row) - 0.5
    return clip((0.31 - np.sqrt(dx * dx + dy * dy)) * period + 0.5, 0, 1)


def _checkered(
    rng: np.random.Generator, x: Floats, y: Floats, depth: Floats, radius: float
) -> Floats:
    period = max(10.0, radius * rng.uniform(0.75, 0.95))
    across, along = wave(x / period + rng.random()) - 0.5, wave(y / period + rng.random()) - 0.5
    a, b = clip(across * period, -0.5, 0.5), clip(along * period, -0.5, 0.5)
    return 0.5 - 2 * a * b


def _bordered(
    rng: np.random.Generator, x: Floats, y: Floats, depth: Floats, radius: float
) -> Floats:
    return clip(max(2.2, radius * rng.uniform(0.12, 0.16)) - depth + 0.5, 0, 1)


def _marbled(
    rng: np.random.Generator, x: Floats, y: Floats, depth: Floats, radius: float
) -> Floats:
    """Veins: where smooth noise passes through zero."""
    shift = rng.integers(0, 512, 2).tolist()
    veins: Floats = np.abs(ripple(max(11.0, 0.85 * radius), x + shift[0], y + shift[1]))
    return clip(1.35 - veins * 2.7, 0, 1)


_Pattern = Callable[[np.random.Generator, Floats, Floats, Floats, float], Floats]
#: Texture → pattern at places x, y of an object whose edge is ``depth`` px away and whose radius is
#: ``radius`` px.
PATTERNS: Final[Mapping[str, _Pattern]] = {
    "plain": _plain,
    "striped": _striped,
    "dotted": _dotted,
    "checkered": _checkered,
    "bordered": _bordered,
    "marbled": _marbled,
}

#: Colour → its own tone and the inks that stand out from it.
INKS: Final[Mapping[str, tuple[_Rgb, tuple[_Rgb, ...]]]] = {
    "red": ((0.80, 0.10, 0.10), ((1.0, 0.80, 0.76), (0.28, 0.02, 0.04))),
    "orange": ((0.97, 0.50, 0.05), ((1.0, 0.90, 0.72), (0.42, 0.17, 0.02))),
    "yellow": ((0.96, 0.84, 0.12), ((0.50, 0.28, 0.03), (0.62, 0.36, 0.02))),
    "green": ((0.12, 0.58, 0.16), ((0.80, 0.96, 0.76), (0.02, 0.20, 0.06))),
    "turquoise": ((0.10, 0.74, 0.72), ((0.84, 1.0, 0.98), (0.01, 0.27, 0.29))),
    "blue": ((0.12, 0.27, 0.82), ((0.78, 0.86, 1.0), (0.02, 0.05, 0.30))),
    "purple": ((0.47, 0.15, 0.66), ((0.90, 0.78, 0.98), (0.15, 0.02, 0.24))),
    "pink": ((0.97, 0.50, 0.70), ((1.0, 0.92, 0.95), (0.52, 0.08, 0.28))),
    "white": ((0.95, 0.94, 0.92), ((0.42, 0.42, 0.44), (0.50, 0.49, 0.48))),
    "black": ((0.09, 0.09, 0.10), ((0.60, 0.60, 0.62), (0.52, 0.53, 0.55))),
}
