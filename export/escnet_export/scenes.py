"""The images for parity and the golden run if the user names none."""

import itertools
from dataclasses import dataclass
from typing import Final

from escnet.config import EscNetConfig
from escnet.presets import DEFAULT_PRESET
from escnet_runtime.confusion import Labels, ignore_index
from escnet_runtime.dataset import LabelledImages
from escnet_runtime.errors import InputError
from escnet_runtime.images import ImageArray
from escnet_runtime.world import render_scene

from .samples import SAMPLE_CATEGORIES, sample_photo

__all__ = ["SceneSet", "default_scenes", "labelled_scenes"]

_COUNT: Final = 3
_SIZE: Final = 384  # px a side: like a photo, larger than the model's input
_FIRST: Final = 38  # seed of the first scene of the small world


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SceneSet:
    """Images, uint8 [H, W, 3], and the categories they are segmented for.

    The first image is the golden one. ``shown`` holds the categories in each image and ``labels``
    each image's label map, uint8 or uint16 [H, W], indices into ``categories``. Both are empty if
    they are not known.
    """

    images: tuple[ImageArray, ...]
    categories: tuple[str, ...]
    shown: tuple[tuple[str, ...], ...] = ()
    labels: tuple[Labels, ...] = ()


def labelled_scenes(dataset: LabelledImages, limit: int) -> SceneSet:
    """The first ``limit`` images of a dataset, with its categories.

    Raises:
        InputError: there is no image in it, one cannot be read, or no pixel is labelled.
    """
    samples = list(itertools.islice(dataset, limit))
    if all((sample.labels == ignore_index(sample.labels)).all() for sample in samples):
        raise InputError(
            f"no pixel of the first {len(samples)} images has a label, so there is no mIoU to "
            "measure: raise --limit, or give the folder of images alone"
        )
    return SceneSet(
        images=tuple(sample.image for sample in samples),
        categories=tuple(dataset.names),
        labels=tuple(sample.labels for sample in samples),
    )


def default_scenes(config: EscNetConfig) -> SceneSet:
    """Scenes of the kind that the model was made for.

    ``tiny`` was trained on the small world and gets held-out scenes, with compositions it never
    saw. All other models are for photos and get landscapes that look like photos.
    """
    if config.name != DEFAULT_PRESET:
        images = tuple(sample_photo(seed) for seed in range(_COUNT))
        return SceneSet(images=images, categories=SAMPLE_CATEGORIES)
    scenes = [
        render_scene(_FIRST + number, "heldout", size=_SIZE, objects=(4, 6))
        for number in range(_COUNT)
    ]
    names = dict.fromkeys(name for scene in scenes for name in scene.names)
    return SceneSet(
        images=tuple(scene.image for scene in scenes),
        categories=tuple(names),
        shown=tuple(scene.names for scene in scenes),
    )
