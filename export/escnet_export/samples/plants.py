"""Trees: broad leaves, bare ones, conifers."""

from typing import Final

import numpy as np

from .drawing import blend, draw
from .scene import TILE, Floats, Rgb, Scene, mix, step

__all__ = ["paint_tree"]

_Branch = tuple[tuple[float, float], tuple[float, float], float]  # from, to, thickness

_WOOD: Final = (0.30, 0.23, 0.17)


def paint_tree(scene: Scene, x: float, z: float) -> None:
    """A conifer or a broad tree, bare where the season has no leaves; its foot at (x, 0, z) m."""
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
    draw(scene, z, shapes, grain=0.15)
    if bare:
        return
    puffs = _conifer(scene) if conifer else _crown(scene)
    colours = scene.season.leaves
    colour: Rgb = (0.13, 0.23, 0.13)
    if not conifer:
        colour = colours[int(scene.rng.random() * len(colours))]
    _paint_foliage(scene, puffs, colour, foot, unit, z)


def _grow(
    scene: Scene, branches: list[_Branch], start: tuple[float, float], angle: float,
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


def _crown(scene: Scene) -> Floats:
    """Tufts of a broad-leaved tree, [n,4]: x, y, radius, nearness, in heights of the tree."""
    angle = 2 * np.pi * scene.rng.random(46)
    reach = np.sqrt(scene.rng.random(46))
    wide = scene.uniform(0.26, 0.36)
    x, y = wide * reach * np.cos(angle), 0.64 + 0.27 * reach * np.sin(angle)
    radius = 0.055 + 0.065 * scene.rng.random(46)
    return np.stack([x, y, radius, 0.25 * (1 - reach**2) + 0.1 * scene.rng.random(46)], 1)


def _conifer(scene: Scene) -> Floats:
    """The same of a conifer: tiers that widen downwards."""
    y = 0.1 + 0.88 * np.sort(scene.rng.random(90))
    wide = 0.21 * (1 - y) + 0.008
    x = wide * (2 * scene.rng.random(90) - 1)
    radius = 0.014 + 0.042 * (1 - y) + 0.012 * scene.rng.random(90)
    return np.stack([x, y - 0.2 * np.abs(x), radius, wide - np.abs(x)], 1)


def _paint_foliage(
    scene: Scene, puffs: Floats, colour: Rgb, foot: tuple[float, float], unit: float, z: float
) -> None:
    """Balls with ragged edges, each lit from the sun's side; the nearest one is seen."""
    left, top = round(foot[0] - 0.5 * unit), round(foot[1] - 1.1 * unit)
    side = int(1.1 * unit) + 2
    front, light = np.zeros((side, side)), np.zeros((side, side))
    start = int(scene.uniform(0, TILE))
    index = (np.arange(side) + start) % TILE
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
    snow = 0.85 * step(light, 0.5, 0.7) * (scene.season.snow == 0)
    leaf = mix(colour, (0.9, 0.93, 0.96), snow[..., None])
    leaf = leaf * np.clip(1 + 0.12 * leafy - 0.25 * (light < 0.12), 0.3, 1.5)[..., None]
    seen = scene.hazed(scene.lit(leaf, light), z)
    blend(scene, seen, np.where(front > 0, 0.97, 0.0), left, top)
