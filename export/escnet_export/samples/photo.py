"""A landscape from a seed: what stands where, painted from far to near, and photographed."""

from typing import Final

import numpy as np

from escnet_runtime.errors import InputError
from escnet_runtime.images import ImageArray

from .drawing import paint_shadow
from .land import paint_forest, paint_ground, paint_mountains, paint_sky, road_centre
from .plants import paint_tree
from .scene import Hour, Painter, Scene, Season, mix, step
from .things import paint_car, paint_cow, paint_fence, paint_house, paint_parked_car

__all__ = ["SAMPLE_CATEGORIES", "sample_photo", "sample_photos"]

SAMPLE_CATEGORIES: Final[tuple[str, ...]] = (
    *("sky", "cloud", "mountain", "tree", "grass", "road"),
    *("house", "lake", "car", "cow", "fence", "snow"),
)

_SMALLEST, _LARGEST = 64, 4096  # px a side

_LAYOUTS: Final = ("road", "lake", "meadow", "village")

_HOURS: Final = (
    Hour(
        zenith=(0.30, 0.52, 0.80), horizon=(0.74, 0.84, 0.91), sun=(0.86, 0.82, 0.72),
        ambient=(0.38, 0.43, 0.52), clouds=0.45, elevation=0.85,
    ),
    Hour(
        zenith=(0.40, 0.56, 0.76), horizon=(0.97, 0.82, 0.62), sun=(1.02, 0.74, 0.44),
        ambient=(0.34, 0.36, 0.45), clouds=0.4, elevation=0.32,
    ),
    Hour(
        zenith=(0.58, 0.62, 0.67), horizon=(0.80, 0.82, 0.83), sun=(0.20, 0.20, 0.19),
        ambient=(0.66, 0.68, 0.70), clouds=0.85, elevation=0.95,
    ),
    Hour(
        zenith=(0.22, 0.27, 0.48), horizon=(0.92, 0.62, 0.48), sun=(0.58, 0.36, 0.30),
        ambient=(0.33, 0.32, 0.42), clouds=0.5, elevation=0.2,
    ),
)  # fmt: skip

_SEASONS: Final = (
    Season(
        grass=(0.33, 0.47, 0.16), straw=(0.52, 0.56, 0.24),
        leaves=((0.22, 0.38, 0.12), (0.27, 0.42, 0.13), (0.18, 0.33, 0.13)), snow=0.9,
    ),
    Season(
        grass=(0.47, 0.46, 0.20), straw=(0.64, 0.54, 0.28),
        leaves=((0.74, 0.44, 0.10), (0.62, 0.24, 0.09), (0.66, 0.56, 0.14), (0.3, 0.34, 0.12)),
        snow=0.7,
    ),
    Season(
        grass=(0.36, 0.52, 0.18), straw=(0.60, 0.62, 0.26),
        leaves=((0.40, 0.56, 0.17), (0.34, 0.50, 0.18), (0.86, 0.72, 0.76)), snow=0.62,
    ),
    Season(grass=(0.84, 0.87, 0.91), straw=(0.72, 0.73, 0.72), leaves=(), snow=0.0),
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
    scene = Scene(
        rng=np.random.Generator(np.random.PCG64(seed)),
        height=height,
        width=width,
        layout=_LAYOUTS[seed % 4],
        season=_SEASONS[(seed + seed // 4) % 4],
        hour=_HOURS[(seed // 2 + seed // 8) % 4],
    )
    paint_sky(scene)
    paint_mountains(scene)
    paint_forest(scene)
    paint_ground(scene)
    _place_objects(scene)
    return _develop(scene)


def sample_photos(count: int) -> list[ImageArray]:
    """The photos of seeds 0 to ``count`` - 1, each uint8 [480, 640, 3]."""
    return [sample_photo(seed) for seed in range(count)]


def _place_objects(scene: Scene) -> None:
    """Trees, houses, fences, cars and cows: all shadows, then all objects from far to near."""
    items = _arrangement(scene)
    for painter, x, z in items:
        if painter is not paint_fence:
            paint_shadow(scene, x, z, 2.6 if painter in (paint_tree, paint_house) else 1.1)
    for painter, x, z in sorted(items, key=lambda item: -item[2]):
        painter(scene, x, z)


def _arrangement(scene: Scene) -> list[tuple[Painter, float, float]]:
    """What stands where: painter, X, Z."""
    uniform, side = scene.uniform, scene.side / abs(scene.side)
    items: list[tuple[Painter, float, float]] = []
    trees = {"road": 13, "lake": 9, "meadow": 7, "village": 8}[scene.layout]
    for index in range(trees):
        z = 13 + 75 * (index + scene.uniform(0, 1)) / trees
        x = uniform(-0.55, 0.55) * z
        if scene.layout == "lake":  # one on the near shore, the others across the water
            z = uniform(6.3, 7.3) if index == 0 else uniform(172, 200)
            x = side * uniform(0.34, 0.48) * z if index == 0 else uniform(-0.5, 0.5) * z
        if scene.layout in ("road", "village"):
            middle = float(road_centre(scene, z))
            x = middle + (6.5 + uniform(0, 0.3) * z) * (1 if uniform(0, 1) < 0.55 else -1)
        elif scene.layout == "meadow" and index == 0:
            x = side * uniform(0.3, 0.45) * z
        items.append((paint_tree, x, z))
    if scene.layout == "village":
        for index, z in enumerate((24.0, 36.0, 52.0)):
            away = 10.5 if index % 2 else -10.5
            items.append((paint_house, float(road_centre(scene, z)) + away * side, z))
        items.append((paint_parked_car, float(road_centre(scene, 15.0)) + 5.2 * side, 15.0))
    if scene.layout == "road":
        z = uniform(15, 24)
        items.append((paint_car, float(road_centre(scene, z)) + 1.5, z))
        items.append((paint_house, float(road_centre(scene, 62.0)) - 19 * side, 62.0))
    if scene.layout == "meadow":
        items.append((paint_house, -side * uniform(9, 13), uniform(38, 50)))
        items.append((paint_fence, 0.0, uniform(22, 28)))
        items += [(paint_cow, uniform(-0.35, 0.35) * z, z) for z in (11.0, 14.5, 18.0, 19.5)]
    return items


def _develop(scene: Scene) -> ImageArray:
    """The lens and the sensor: blur, vignette, contrast, shot noise."""
    picture = np.clip(scene.canvas, 0, 1.2)
    padded = np.pad(picture, ((1, 1), (0, 0), (0, 0)), mode="edge")
    picture = 0.13 * (padded[:-2] + padded[2:]) + 0.74 * padded[1:-1]
    padded = np.pad(picture, ((0, 0), (1, 1), (0, 0)), mode="edge")
    picture = 0.13 * (padded[:, :-2] + padded[:, 2:]) + 0.74 * padded[:, 1:-1]
    y = np.linspace(-1, 1, scene.height)[:, None]
    x = np.linspace(-1, 1, scene.width)[None, :]
    picture = picture * (1 - 0.13 * (x * x + y * y))[..., None]
    picture = mix(picture, step(picture, -0.05, 1.05), 0.35)
    noise = scene.rng.standard_normal(picture.shape)
    picture = picture + noise * (0.004 + 0.011 * np.sqrt(np.clip(picture, 0, 1)))
    return np.clip(np.rint(picture * 255), 0, 255).astype(np.uint8)
