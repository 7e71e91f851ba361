"""What benchmarks run on: images, models and words that need no download."""

import itertools
from typing import TYPE_CHECKING, Final

import numpy as np

from escnet_runtime.images import ImageArray
from escnet_runtime.labelled import open_labelled

from .footprint import generated_names

if TYPE_CHECKING:
    from escnet.model import EscNet

__all__ = [
    "KNOWN",
    "category_names",
    "known_categories",
    "load_model",
    "made_up_images",
    "pictures",
]

#: Model → labelled images of the kind it was trained for.
KNOWN: Final = {"tiny": "shapes:heldout"}


def made_up_images(size: tuple[int, int], count: int, seed: int = 0) -> list[ImageArray]:
    """uint8 [H,W,3]: areas of colour with grain, all different."""
    height, width = size
    rng = np.random.Generator(np.random.PCG64(seed))
    y, x = np.mgrid[:height, :width]
    found = []
    for _ in range(count):
        image = np.empty((height, width, 3))
        image[:] = rng.uniform(0, 255, 3)
        for _ in range(12):
            cy, cx = rng.uniform(0, height), rng.uniform(0, width)
            radius = rng.uniform(0.05, 0.35) * min(size)
            image[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = rng.uniform(0, 255, 3)
        image += rng.normal(0, 8, image.shape)
        found.append(image.clip(0, 255).astype(np.uint8))
    return found


def pictures(model: str, size: tuple[int, int], count: int) -> list[ImageArray]:
    """Images of the kind the model knows: `tiny` its world; for others made-up ones of ``size``."""
    if model in KNOWN:
        return [one.image for one in itertools.islice(open_labelled(KNOWN[model]), count)]
    return made_up_images(size, count)


def category_names(model: str, count: int) -> list[str]:
    """So many categories: of the model's world first, then generated ones."""
    known = open_labelled(KNOWN[model]).names if model in KNOWN else ()
    return [*known[:count], *generated_names(max(count - len(known), 0))]


def known_categories(model: str) -> int:
    """How many categories a model of ``KNOWN`` was trained for."""
    return len(open_labelled(KNOWN[model]).names)


def load_model(name: str, image_size: int | None = None) -> "tuple[EscNet, str, bool]":
    """A preset in float32, a description of its weights, and whether they are trained.

    The weights are those that ship, or seeded random ones if none do. ``image_size``, if given,
    replaces the preset's.
    """
    from escnet.presets import preset
    from escnet.weights import load_preset

    config = preset(name) if image_size is None else preset(name).at_size(image_size)
    loaded = load_preset(config)
    return loaded.model, loaded.weights, loaded.trained
