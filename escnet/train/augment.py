"""From an image of any size to one of the model's, cropped, flipped and coloured by chance.

The image is resized with the filter of the runtime's preprocessing and labels by nearest neighbour,
both with pixel centres at ``(i + 0.5) * scale``. Every random number comes from a generator that
is handed in, so a sample follows from its seed alone; torchvision's transforms draw from torch's
global generator, so of torchvision its functions are used and not its classes. They are given
Pillow's images: on tensors they would compete with the training for its threads.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms.v2 import functional as colour

from escnet_runtime.confusion import Labels, ignore_index
from escnet_runtime.errors import InputError
from escnet_runtime.images import ImageArray
from escnet_runtime.preprocess import resize

__all__ = ["IGNORED", "NO_AUGMENTATION", "Augmentation", "augmented"]

#: The label of a pixel that is not labelled, or lies outside of its image.
IGNORED: Final = -1
#: (picture, how much) → picture.
_Change: TypeAlias = Callable[[Image.Image, float], Image.Image]
_PADDING: Final = 128  # grey, as CAT-Seg pads


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """What is left to chance. The defaults are CAT-Seg's (see ``docs/training.md``).

    Attributes:
        crop: cut a square out, which keeps the aspect; otherwise the whole image is squeezed into
            the square, as in evaluation.
        scale: with ``crop``, least and most of the shorter side before cutting, in sides of the
            square. Below 1 the image does not fill the square: the rest is ignored.
        flip: probability of a mirror image.
        colour: probability of each of the four changes below, which come in this order.
        brightness: the image is multiplied with 1 ± up to this much.
        contrast: its distance from its mean grey is multiplied with 1 ± up to this much.
        saturation: its distance from its grey image is multiplied with 1 ± up to this much.
        hue: turned by ± up to this much of the full circle.
    """

    crop: bool = True
    scale: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.5
    colour: float = 0.5
    brightness: float = 0.125
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.1

    def __post_init__(self) -> None:
        least, most = self.scale
        if not 0.1 <= least <= most <= 10.0:
            raise InputError(f"scale is {list(self.scale)}; expected two numbers from 0.1 to 10")
        for name, limit in (
            ("flip", 1.0),
            ("colour", 1.0),
            ("brightness", 1.0),
            ("contrast", 1.0),
            ("saturation", 1.0),
            ("hue", 0.5),
        ):
            if not 0.0 <= getattr(self, name) <= limit:
                raise InputError(f"{name} is {getattr(self, name)}; expected 0 to {limit:g}")


#: The whole image as in evaluation.
NO_AUGMENTATION: Final = Augmentation(crop=False, flip=0.0, colour=0.0)


def augmented(
    image: ImageArray,
    labels: Labels,
    *,
    size: int,
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> tuple[ImageArray, NDArray[np.int64]]:
    """An image and its labels as they are trained on.

    Args:
        image: uint8 [H, W, 3].
        labels: uint8 or uint16 [H, W]; 255 resp. 65535 is not labelled.
        size: S, px a side.
        augmentation: what is left to chance.
        rng: where chance comes from.

    Returns:
        Image uint8 [S, S, 3] and labels int64 [S, S], where :data:`IGNORED` is not labelled.
    """
    classes = labels.astype(np.int64)
    classes[labels == ignore_index(labels)] = IGNORED
    if augmentation.crop:
        image, classes = _cropped(image, classes, size, augmentation.scale, rng)
    else:
        image, classes = _resized(image, classes, size, size)
    if rng.random() < augmentation.flip:
        image, classes = image[:, ::-1], classes[:, ::-1]
    image = _coloured(image, augmentation, rng)
    return np.ascontiguousarray(image), np.ascontiguousarray(classes)


def _cropped(
    image: ImageArray,
    classes: NDArray[np.int64],
    size: int,
    scale: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[ImageArray, NDArray[np.int64]]:
    """A square at a random place of the image at a random scale (even in the logarithm)."""
    least, most = (math.log(value) for value in scale)
    factor = size * math.exp(rng.uniform(least, most)) / min(classes.shape)
    height, width = (max(1, round(side * factor)) for side in classes.shape)
    image, classes = _resized(image, classes, height, width)
    square = np.full((size, size, 3), _PADDING, np.uint8)
    inside = np.full((size, size), IGNORED, np.int64)
    (top, y, rows), (left, x, columns) = (_overlap(side, size, rng) for side in (height, width))
    target = np.s_[y : y + rows, x : x + columns]
    source = np.s_[top : top + rows, left : left + columns]
    square[target], inside[target] = image[source], classes[source]
    return square, inside


def _overlap(side: int, size: int, rng: np.random.Generator) -> tuple[int, int, int]:
    """Where one axis of image and square meet: first px of the image, of the square, how many."""
    place = int(rng.integers(abs(side - size) + 1))
    return (place, 0, size) if side >= size else (0, place, side)


def _resized(
    image: ImageArray, classes: NDArray[np.int64], height: int, width: int
) -> tuple[ImageArray, NDArray[np.int64]]:
    if classes.shape == (height, width):
        return image, classes
    rows, columns = (
        ((np.arange(new) + 0.5) * (old / new)).astype(np.int64)
        for old, new in zip(classes.shape, (height, width), strict=True)
    )
    return resize(image, height, width), classes[rows[:, None], columns]


def _coloured(
    image: ImageArray, augmentation: Augmentation, rng: np.random.Generator
) -> ImageArray:
    changes: tuple[tuple[_Change, float, float], ...] = (
        (colour.adjust_brightness, 1.0, augmentation.brightness),
        (colour.adjust_contrast, 1.0, augmentation.contrast),
        (colour.adjust_saturation, 1.0, augmentation.saturation),
        (colour.adjust_hue, 0.0, augmentation.hue),
    )
    picture: Image.Image | None = None
    for change, middle, spread in changes:
        amount = middle + rng.uniform(-spread, spread)
        if rng.random() < augmentation.colour and amount != middle:
            picture = change(picture or Image.fromarray(image), amount)
    return image if picture is None else np.array(picture)
