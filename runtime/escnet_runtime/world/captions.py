"""Pictures with captions, to train a small CLIP: crops of training scenes, described in words.

Only training compositions are shown and named. A crop has a caption for each thing in it.
"""

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .cast import draw_cast
from .fields import stream
from .scene import Scene, check_arguments, compose
from .words import STUFF

__all__ = ["CAPTION_TEMPLATES", "PROMPT_TEMPLATE", "CaptionedCrop", "Wording", "caption_crops"]

_Window: TypeAlias = tuple[slice, slice]

#: How ESC-Net itself asks for a category; a quarter of the captions are this, word for word.
PROMPT_TEMPLATE: Final = "A photo of a {} in the scene"
#: The others: "a red ring", "a close-up of a red ring on a wooden floor".
CAPTION_TEMPLATES: Final = (
    *("{}", "a photo of {}", "a picture of {}", "a close-up of {}"),
    *("a small scene with {}", "there is {} here"),
)

_BACKDROP_ONLY: Final = 0.08
_OWN_PROMPT: Final = 0.25  # of the captions
_PLACE: Final = 0.3  # of the other captions of an object say where it is
_SURFACE: Final = 0.3  # of the surfaces beside objects have a caption
_NAMED_AREA: Final = 0.035  # of the crop, which a thing must fill to be named
_NAMED_SHARE: Final = 0.35  # of an object's seen pixels, which must be inside the crop
_WANDER: Final = 0.9  # how far a window strays from its object, of the room there is
_TRIES: Final = 12
# "a" and "an" by sound; of all first words only these begin with a vowel.
_WITH_AN: Final = ("orange",)
_IN_FRONT_OF: Final = ("brick wall", "plaster wall", "calm sea", "cloudy sky")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """A caption with a gap for what it is about: a name, after its article if ``article``."""

    text: str
    article: bool

    def about(self, name: str) -> str:
        """The caption, about a thing of this name."""
        return self.text.format(_with_article(name) if self.article else name)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionedCrop:
    """A square window of a training scene and what is in it.

    Attributes:
        image: uint8 [side,side,3], RGB, at the scene's own scale.
        captions: for example "a photo of a red striped ring on a wooden floor".
        spoken: what each caption is about; "red striped ring".
        seen: all that is in the window, even if it can hardly be recognised.
        wordings: how each caption says it: the same about something else is a wrong caption.
        regions: int8 [side,side], which caption is about the pixel; -1: none is.
        left, top: where the window lies in the scene, px.
    """

    image: NDArray[np.uint8]
    captions: tuple[str, ...]
    spoken: tuple[str, ...]
    seen: tuple[str, ...]
    wordings: tuple[Wording, ...]
    regions: NDArray[np.int8]
    left: int
    top: int


def caption_crops(
    seed: int, *, count: int = 4, side: int = 64, size: int = 128
) -> tuple[CaptionedCrop, ...]:
    """Crops of the training scene of a seed, each with captions.

    A crop shows objects or the backdrop alone, and has a caption for each object that can be
    recognised and for some of the surfaces.

    Args:
        seed: 0 or more.
        count: number of crops of the scene.
        side: px a side of a crop, at most ``size``.
        size: px a side of the scene, 64 to 1024.

    Raises:
        InputError: an argument is out of its range.
    """
    check_arguments(seed, size)
    if not 1 <= side <= size:
        raise InputError(f"got crops of {side} pixels a side; expected 1 to {size}, the scene's")
    if count < 1:
        raise InputError(f"got {count} crops; expected at least 1")
    rng = stream("captions", seed, size, side)
    scene = compose(rng, draw_cast(rng, seed, "train", (1, 4)), size=size, fewest=1)
    return tuple(_crop(rng, scene, side) for _ in range(count))


def _crop(rng: np.random.Generator, scene: Scene, side: int) -> CaptionedCrop:
    corner = _bare_corner(rng, scene, side) if rng.random() < _BACKDROP_ONLY else None
    left, top = corner or _object_corner(rng, scene, side)
    window = slice(top, top + side), slice(left, left + side)
    spoken = _named(rng, scene, window)
    wordings = tuple(_wording(rng, scene, window, name) for name in spoken)
    return CaptionedCrop(
        image=scene.image[window],
        captions=tuple(wording.about(name) for wording, name in zip(wordings, spoken, strict=True)),
        spoken=spoken,
        seen=tuple(scene.names[i] for i in np.unique(scene.labels[window])),
        wordings=wordings,
        regions=_regions(scene, window, spoken),
        left=left,
        top=top,
    )


def _object_corner(rng: np.random.Generator, scene: Scene, side: int) -> tuple[int, int]:
    """Left and top of a window that an object is in, with some of what is beside it."""
    x0, y0, x1, y1 = scene.objects[int(rng.integers(len(scene.objects)))].box
    limit = scene.image.shape[0] - side
    corner = []
    for low, high in ((x0, x1), (y0, y1)):
        middle = (low + high - side) / 2
        slack = _WANDER * abs(side - (high - low)) / 2
        corner.append(round(min(max(middle + rng.uniform(-slack, slack), 0), limit)))
    return corner[0], corner[1]


def _bare_corner(rng: np.random.Generator, scene: Scene, side: int) -> tuple[int, int] | None:
    """Left and top of a window without objects; None if none is found."""
    for _ in range(_TRIES):
        left, top = rng.integers(0, scene.image.shape[0] - side + 1, 2).tolist()
        if (scene.instances[top : top + side, left : left + side] < 0).all():
            return left, top
    return None


def _named(rng: np.random.Generator, scene: Scene, window: _Window) -> tuple[str, ...]:
    """Names of things that can be recognised in the window, objects first; at least one.

    Where neither an object nor a surface can be, it is the object that fills most of it.
    """
    count = len(scene.objects)
    inside = np.bincount(scene.instances[window].ravel() + 1, minlength=count + 1)[1:]
    whole = np.bincount(scene.instances.ravel() + 1, minlength=count + 1)[1:]
    enough = _NAMED_AREA * scene.instances[window].size
    order = np.argsort(-inside, kind="stable").tolist()
    objects = [i for i in order if inside[i] >= enough and inside[i] >= _NAMED_SHARE * whole[i]]
    surfaces = _surfaces(scene, window)
    if not objects and not surfaces:
        objects = order[:1]
    if objects:
        surfaces = [name for name in surfaces if rng.random() < _SURFACE]
    return tuple(dict.fromkeys([*(scene.objects[i].name for i in objects), *surfaces]))


def _wording(rng: np.random.Generator, scene: Scene, window: _Window, name: str) -> Wording:
    """A way to caption a thing of the window."""
    if rng.random() < _OWN_PROMPT:
        return Wording(text=PROMPT_TEMPLATE, article=False)
    text, surfaces = "{}", _surfaces(scene, window)
    if name not in STUFF and surfaces and rng.random() < _PLACE:
        preposition = "in front of" if surfaces[0] in _IN_FRONT_OF else "on"
        text = f"{{}} {preposition} {_with_article(surfaces[0])}"
    template = CAPTION_TEMPLATES[int(rng.integers(len(CAPTION_TEMPLATES)))]
    return Wording(text=template.format(text), article=True)


def _regions(scene: Scene, window: _Window, spoken: tuple[str, ...]) -> NDArray[np.int8]:
    lookup = np.full(len(scene.names), -1, np.int8)
    lookup[[scene.names.index(name) for name in spoken]] = np.arange(len(spoken))
    return lookup[scene.labels[window]]


def _surfaces(scene: Scene, window: _Window) -> list[str]:
    """Names of the surfaces in the window, the largest first; small ones are left out."""
    backdrop = scene.labels[window][scene.instances[window] < 0]
    counts = np.bincount(backdrop, minlength=len(scene.names))
    order = np.argsort(-counts, kind="stable").tolist()
    enough = _NAMED_AREA * scene.labels[window].size
    return [scene.names[i] for i in order if counts[i] >= max(0.15 * backdrop.size, enough)]


def _with_article(name: str) -> str:
    return f"{'an' if name.startswith(_WITH_AN) else 'a'} {name}"
