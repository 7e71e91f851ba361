"""Masks without classes and the prompts that ask for them, to train a small promptable SAM."""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .cast import draw_cast
from .fields import Floats, clip, stream
from .scene import Scene, check_arguments, compose

__all__ = ["PromptSample", "Region", "prompt_sample"]

#: What a mask covers: one object, or all objects of one name. Surfaces of the backdrop are regions
#: either way.
Region: TypeAlias = Literal["object", "category"]

_SMALLEST_SHARE: Final = 0.004  # of the picture: smaller regions are not asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSample:
    """A picture with k masks and the prompts for them.

    Attributes:
        image: uint8 [H,W,3], RGB.
        masks: bool [k,H,W], what is seen of k regions; no two of them overlap.
        points: float32 [k,p,2], p places (x, y) in px inside each mask; the middle of the first
            pixel is (0.5, 0.5).
        coarse: float32 [k,H,W] from 0 to 1, a poor guess at each mask, or None if not asked for.
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    points: Floats
    coarse: Floats | None


def prompt_sample(
    seed: int,
    *,
    size: int = 128,
    objects: tuple[int, int] = (2, 6),
    region: Region = "object",
    points: int = 1,
    coarse: bool = False,
) -> PromptSample:
    """The sample of a seed; picture and masks do not depend on ``points`` and ``coarse``.

    Args:
        seed: 0 or more.
        size: px a side, 64 to 1024.
        objects: fewest and most objects.
        region: what a mask covers.
        points: places for each mask, at least 1; they may coincide in a small one.
        coarse: also make a poor guess at each mask, as a correlation map would be.

    Raises:
        InputError: an argument is out of its range.
    """
    check_arguments(seed, size, objects)
    if region not in ("object", "category"):
        raise InputError(f"got region {region!r}; expected object or category")
    if points < 1:
        raise InputError(f"got {points} points for each mask; expected at least 1")
    rng = stream("prompts", seed, size, *objects)
    cast = draw_cast(rng, seed, "train", objects)
    scene = compose(rng, cast, size=size, fewest=objects[0])
    masks = _masks(scene, region)
    return PromptSample(
        image=scene.image,
        masks=masks,
        points=np.stack([_points_inside(rng, mask, points) for mask in masks]),
        coarse=np.stack([_guess(rng, mask) for mask in masks]) if coarse else None,
    )


def _masks(scene: Scene, region: Region) -> NDArray[np.bool_]:
    """[k,H,W]; of the smallest regions the largest one stays, so that k is at least 1."""
    regions = scene.labels.astype(np.int32)
    if region == "object":
        is_object = scene.instances >= 0
        regions = np.where(is_object, scene.instances + len(scene.names), regions)
    values, counts = np.unique(regions, return_counts=True)
    large = counts >= min(_SMALLEST_SHARE * regions.size, counts.max())
    masks: NDArray[np.bool_] = regions[None] == values[large][:, None, None]
    return masks


def _points_inside(rng: np.random.Generator, mask: NDArray[np.bool_], count: int) -> Floats:
    """[count,2] middles of pixels of the mask that are drawn at random, rather not at its edge."""
    inner = mask.copy()
    for _ in range(2):
        inner[1:-1, 1:-1] &= inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    rows, columns = np.nonzero(inner if inner.any() else mask)
    chosen = rng.integers(0, len(rows), count)
    return np.stack([columns[chosen], rows[chosen]], 1).astype(np.float32) + np.float32(0.5)


def _moved(mask: NDArray[np.bool_], down: int, right: int) -> NDArray[np.bool_]:
    """The mask moved by some pixels; what leaves the picture is gone."""
    height, width = mask.shape
    moved = np.zeros_like(mask)
    moved[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = mask[
        max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)
    ]
    return moved


def _guess(rng: np.random.Generator, mask: NDArray[np.bool_]) -> Floats:
    """The mask as a coarse model sees it: on a grid of 16×16, moved, noisy, then smooth again."""
    size = mask.shape[0]
    shift = rng.integers(-size // 24, size // 24 + 1, 2).tolist()
    moved = _moved(mask, *shift)
    edges = np.arange(16) * size // 16
    sums = np.add.reduceat(np.add.reduceat(moved.astype(np.float32), edges, 0), edges, 1)
    areas = np.diff(np.append(edges, size)).astype(np.float32)
    cells = sums / (areas[:, None] * areas[None, :])
    cells = clip(cells + rng.normal(0, 0.18, (16, 16)).astype(np.float32), 0, 1)
    grid = np.clip((np.arange(size) + 0.5) * 16 / size - 0.5, 0, 15)
    low = np.minimum(grid.astype(np.intp), 14)
    part = (grid - low).astype(np.float32)
    rows = cells[low] * (1 - part)[:, None] + cells[low + 1] * part[:, None]
    smooth: Floats = rows[:, low] * (1 - part) + rows[:, low + 1] * part
    return smooth
