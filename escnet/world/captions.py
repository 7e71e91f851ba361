"""Pictures with captions, to train a small CLIP: crops of training scenes, described in words.

Only training compositions are shown and named.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .cast import draw_cast
from .fields import stream
from .scene import Scene, check_arguments, compose

__all__ = ["CAPTION_TEMPLATES", "PROMPT_TEMPLATE", "caption_crop"]

#: How ESC-Net itself asks for a category; also used for captions, of one thing, word for word.
PROMPT_TEMPLATE: Final = "A photo of a {} in the scene"
#: For what is seen: "a red ring", "a red ring and a blue star on a wooden floor".
CAPTION_TEMPLATES: Final = (
    *("{}", "a photo of {}", "a picture of {}", "a close-up of {}"),
    *("a small scene with {}", "there is {} here"),
)

_SIZE: Final = 128  # px a side of the scenes that are cropped
_SMALLEST_CROP: Final = 44  # px a side
_BACKDROP_ONLY: Final = 0.12
_OWN_PROMPT: Final = 0.3  # of the pictures that show one thing
_PLACE: Final = 0.4  # of the captions say where
_MOST_NAMED: Final = 3
_NAMED_AREA: Final = 0.035  # of the crop, which an object must fill to be named
_NAMED_SHARE: Final = 0.35  # of an object's seen pixels, which must be inside the crop
_TRIES: Final = 12
# "a" and "an" by sound; of all first words only these begin with a vowel.
_WITH_AN: Final = ("orange",)
_IN_FRONT_OF: Final = ("brick wall", "plaster wall", "calm sea", "cloudy sky")


def caption_crop(seed: int, *, size: int = 128) -> tuple[NDArray[np.uint8], str]:
    """The crop and caption of a seed: uint8 [size,size,3], and for example "a photo of a red ring".

    The crop shows one to three objects or the backdrop alone, and the caption names all that can be
    recognised. One in three pictures of a single thing has the caption :data:`PROMPT_TEMPLATE`.

    Raises:
        InputError: the seed is negative, or the size is not from 64 to 1024.
    """
    check_arguments(seed, size)
    rng = stream("captions", seed, size)
    if rng.random() < _BACKDROP_ONLY:
        scene = compose(rng, draw_cast(rng, seed, "train", (1, 2)), size=_SIZE, fewest=1)
        crop = _bare_crop(rng, scene)
    else:
        scene = compose(rng, draw_cast(rng, seed, "train", (1, 4)), size=_SIZE, fewest=1)
        crop = None
    left, top, side = crop or _object_crop(rng, scene)
    box = (left, top, left + side, top + side)
    image = Image.fromarray(scene.image).resize((size, size), Image.Resampling.BICUBIC, box)
    return np.array(image), _caption(rng, scene, box)


def _object_crop(rng: np.random.Generator, scene: Scene) -> tuple[int, int, int]:
    """A square around an object, with some of what is beside it: left, top, side."""
    x0, y0, x1, y1 = scene.objects[int(rng.integers(len(scene.objects)))].box
    widest = max(x1 - x0, y1 - y0)
    side = round(min(max(widest * rng.uniform(1.1, 2.6), _SMALLEST_CROP), _SIZE))
    slack = max((side - widest) / 2, 0)
    left = (x0 + x1 - side) / 2 + rng.uniform(-slack, slack)
    top = (y0 + y1 - side) / 2 + rng.uniform(-slack, slack)
    return (*(round(min(max(one, 0), _SIZE - side)) for one in (left, top)), side)


def _bare_crop(rng: np.random.Generator, scene: Scene) -> tuple[int, int, int] | None:
    """A square without objects; None if none is found."""
    for _ in range(_TRIES):
        side = int(rng.integers(_SMALLEST_CROP, 100))
        left, top = rng.integers(0, _SIZE - side + 1, 2).tolist()
        if (scene.instances[top : top + side, left : left + side] < 0).all():
            return left, top, side
    return None


def _caption(rng: np.random.Generator, scene: Scene, box: tuple[int, int, int, int]) -> str:
    left, top, right, bottom = box
    window = slice(top, bottom), slice(left, right)
    objects = _named_objects(scene, window)
    surfaces = _surfaces(scene, window)
    if not objects:
        if len(surfaces) == 1 and rng.random() < _OWN_PROMPT:
            return PROMPT_TEMPLATE.format(surfaces[0])
        return _template(rng).format(_joined([_with_article(name) for name in surfaces]))
    if len(objects) == 1 and rng.random() < _OWN_PROMPT:
        return PROMPT_TEMPLATE.format(objects[0])
    if rng.random() < 0.5:
        objects.reverse()
    spoken = _joined([_with_article(name) for name in objects])
    if rng.random() < _PLACE:
        where = surfaces[0]
        preposition = "in front of" if where in _IN_FRONT_OF else "on"
        spoken = f"{spoken} {preposition} {_with_article(where)}"
    return _template(rng).format(spoken)


def _named_objects(scene: Scene, window: tuple[slice, slice]) -> list[str]:
    """Names of the objects that can be recognised in the window, the largest first."""
    count = len(scene.objects)
    inside = np.bincount(scene.instances[window].ravel() + 1, minlength=count + 1)[1:]
    whole = np.bincount(scene.instances.ravel() + 1, minlength=count + 1)[1:]
    enough = _NAMED_AREA * scene.instances[window].size
    named = [
        scene.objects[i].name
        for i in np.argsort(-inside, kind="stable").tolist()
        if inside[i] >= enough and inside[i] >= _NAMED_SHARE * whole[i]
    ]
    return list(dict.fromkeys(named))[:_MOST_NAMED]


def _surfaces(scene: Scene, window: tuple[slice, slice]) -> list[str]:
    """Names of the surfaces in the window, the largest first; small ones are left out."""
    backdrop = scene.labels[window][scene.instances[window] < 0]
    counts = np.bincount(backdrop, minlength=len(scene.names))
    order = np.argsort(-counts, kind="stable").tolist()
    return [scene.names[i] for i in order if counts[i] and counts[i] >= 0.15 * backdrop.size]


def _template(rng: np.random.Generator) -> str:
    return CAPTION_TEMPLATES[int(rng.integers(len(CAPTION_TEMPLATES)))]


def _with_article(name: str) -> str:
    return f"{'an' if name.startswith(_WITH_AN) else 'a'} {name}"


def _joined(names: Sequence[str]) -> str:
    """One, "one and two", or "one, two and three"."""
    if len(names) == 1:
        return names[0]
    return f"{', '.join(names[:-1])} and {names[-1]}"
