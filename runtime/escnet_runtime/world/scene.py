"""A scene: objects in front of each other, in front of a backdrop, with a name for every pixel."""

from dataclasses import dataclass
from math import cos, pi, sin
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .backdrop import Backdrop, paint_backdrop
from .cast import draw_cast
from .fields import Floats, blur, clip, noise, stream, tint
from .figures import Light, paint_figure
from .placement import Placement, place
from .words import Composition, Split, check_split

__all__ = ["Object", "Scene", "check_arguments", "compose", "render_scene"]

_SMALLEST, _LARGEST = 64, 1024  # px a side
_MOST_OBJECTS: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """One object of a scene.

    Attributes:
        name: its composition in words.
        box: left, top, right, bottom of what is seen, in px; right and bottom are outside.
        visible: fraction of its pixels that is seen, neither hidden nor cut off by the border.
    """

    name: str
    box: tuple[int, int, int, int]
    visible: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A picture and the truth about it.

    Attributes:
        image: uint8 [H,W,3], RGB.
        labels: int16 [H,W], index into ``names``; every name has pixels.
        names: surfaces of the backdrop that are seen, then the objects' names, each once.
        instances: int16 [H,W], index into ``objects``; -1 is the backdrop.
        objects: from the nearest to the farthest.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.int16]
    names: tuple[str, ...]
    instances: NDArray[np.int16]
    objects: tuple[Object, ...]


def render_scene(
    seed: int, split: Split, *, size: int = 128, objects: tuple[int, int] = (2, 6)
) -> Scene:
    """The scene of a seed; the same arguments give the same scene in every process.

    A training scene shows training compositions alone. A held-out scene shows at least one held-out
    composition (the one whose turn it is by the seed: 144 seeds in a row show them all), and
    otherwise held-out ones and distractors in equal parts.

    Args:
        seed: 0 or more; the streams of the two splits are independent of each other.
        split: "train" or "heldout".
        size: px a side, 64 to 1024. Everything in the scene grows with it.
        objects: fewest and most objects, 1 to 32.

    Raises:
        InputError: an argument is out of its range.
    """
    check_split(split)
    check_arguments(seed, size, objects)
    rng = stream(split, seed, size, *objects)
    cast = draw_cast(rng, seed, split, objects)
    return compose(rng, cast, size=size, fewest=objects[0])


def check_arguments(seed: int, size: int, objects: tuple[int, int] = (1, 1)) -> None:
    """Raise InputError unless a scene can be made of these numbers."""
    if seed < 0:
        raise InputError(f"got seed {seed}; expected 0 or more")
    if not _SMALLEST <= size <= _LARGEST:
        raise InputError(f"got size {size}; expected {_SMALLEST} to {_LARGEST} pixels")
    fewest, most = objects
    if not 1 <= fewest <= most <= _MOST_OBJECTS:
        raise InputError(
            f"got {fewest} to {most} objects; expected the fewest and the most objects of a scene, "
            f"from 1 to {_MOST_OBJECTS}"
        )


def compose(
    rng: np.random.Generator, cast: tuple[Composition, ...], *, size: int, fewest: int
) -> Scene:
    """A scene with these compositions, ``fewest`` of them at least and the first one always.

    Others are left out where no place shows enough of them.
    """
    backdrop = paint_backdrop(rng, size)
    placement = place(rng, cast, size=size, fewest=fewest)
    canvas = _paint(rng, backdrop, placement)
    names, labels = _name(backdrop, placement)
    return Scene(
        image=_develop(rng, canvas),
        labels=labels,
        names=names,
        instances=placement.instances,
        objects=tuple(
            Object(
                name=placed.figure.composition.name,
                box=_box(placement.instances == index),
                visible=placed.seen / placed.figure.area,
            )
            for index, placed in enumerate(placement.placed)
        ),
    )


def _name(backdrop: Backdrop, placement: Placement) -> tuple[tuple[str, ...], NDArray[np.int16]]:
    """Names and labels of what is seen."""
    seen = np.unique(backdrop.surfaces[placement.instances < 0])
    names = [backdrop.names[surface] for surface in seen]
    lookup = np.full(len(backdrop.names) + len(placement.placed), -1, np.int16)
    lookup[seen] = np.arange(len(seen))
    for index, placed in enumerate(placement.placed, start=len(backdrop.names)):
        name = placed.figure.composition.name
        if name not in names:
            names.append(name)
        lookup[index] = names.index(name)
    here = placement.instances + len(backdrop.names)
    return tuple(names), lookup[np.where(placement.instances < 0, backdrop.surfaces, here)]


def _box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _paint(rng: np.random.Generator, backdrop: Backdrop, placement: Placement) -> Floats:
    """The objects over the backdrop from far to near, in the light of one lamp: [3,H,W]."""
    size = backdrop.surfaces.shape[0]
    angle = rng.uniform(1.1 * pi, 1.9 * pi)  # from somewhere above
    light = Light(
        x=cos(angle), y=sin(angle), shadow=rng.uniform(0.2, 0.6), softness=rng.uniform(0.05, 0.3)
    )
    canvas = backdrop.colours
    for placed in reversed(placement.placed):
        paint_figure(rng, canvas, placed.figure, placed.corner, light)
    grid = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = grid[None, :], grid[:, None]
    slope, vignette = rng.uniform(0, 0.16), rng.uniform(0, 0.12)
    field = 1 + slope * (x * light.x + y * light.y) - vignette * (x * x + y * y)
    if rng.random() < 0.3:  # the shade of something outside the picture
        scale, shift = rng.uniform(40, 90), rng.integers(0, 512, 2).tolist()
        shade = noise(3.6, x * scale + shift[0] + 256, y * scale + shift[1] + 256)
        field = field - rng.uniform(0.1, 0.25) * clip(shade + 0.5, 0, 1)
    warmth = rng.uniform(-0.04, 0.04)
    lamp = tint((1 + warmth, 1.0, 1 - warmth)) * rng.uniform(0.86, 1.06)
    return canvas * (field * lamp)


def _develop(rng: np.random.Generator, canvas: Floats) -> NDArray[np.uint8]:
    """Lens and sensor: blur and noise. uint8 [H,W,3]."""
    picture = blur(canvas, rng.uniform(0.02, 0.16))
    grain = rng.standard_normal(picture.shape, np.float32)
    picture += grain * rng.uniform(0.004, 0.022)
    np.clip(picture, 0, 1, out=picture)
    picture *= 255
    return np.ascontiguousarray(np.rint(picture, out=picture).astype(np.uint8).transpose(1, 2, 0))
