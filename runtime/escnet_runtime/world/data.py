"""The built-in data sets by name: ``shapes:train``, ``shapes:heldout``, ``shapes:heldout:SEED``."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .scene import Scene, check_arguments, render_scene
from .words import Split, name_index, vocabulary

__all__ = ["DATASET_NAMES", "ShapesDataset", "dataset"]

DATASET_NAMES: Final = ("shapes:train", "shapes:heldout", "shapes:heldout:SEED")

# Twice the number of held-out compositions, and some: each is the one whose turn it is twice.
_HELD_OUT_LENGTH: Final = 300
_TRAIN_LENGTH: Final = 20_000
#: Scenes of a held-out set with another seed start this far on.
_STRIDE: Final = 1 << 32
_NAME: Final = re.compile(r"shapes:(?:train|heldout(?::(0|[1-9][0-9]{0,8}))?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapesDataset:
    """Scenes drawn when they are asked for; indexing gives the same picture every time.

    Attributes:
        name: as :func:`dataset` reads it.
        first: seed of the first scene.
        length: number of scenes.
        size: px a side.
        objects: fewest and most objects of a scene.
    """

    name: str
    split: Split
    first: int
    length: int
    size: int
    objects: tuple[int, int]

    @property
    def classes(self) -> tuple[str, ...]:
        """What labels index: all names that can occur."""
        return vocabulary(self.split)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """Image uint8 [H,W,3] and labels uint16 [H,W], index into ``classes``; none is ignored.

        Raises:
            IndexError: the index is not from 0 to the length.
        """
        scene = self.scene(index)
        places = name_index(self.split)
        lookup = np.asarray([places[name] for name in scene.names], np.uint16)
        return scene.image, lookup[scene.labels]

    def __iter__(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint16]]]:
        return (self[index] for index in range(self.length))

    def scene(self, index: int) -> Scene:
        """The scene behind an index, with instances and objects. IndexError as above."""
        if not 0 <= index < self.length:
            raise IndexError(f"got index {index} of {self.name} with {self.length} scenes")
        return render_scene(self.first + index, self.split, size=self.size, objects=self.objects)


def dataset(
    name: str,
    *,
    length: int | None = None,
    size: int = 128,
    objects: tuple[int, int] = (2, 6),
) -> ShapesDataset:
    """The data set of a name.

    Args:
        name: one of :data:`DATASET_NAMES`; SEED is a whole number from 0 to 999999999, and
            ``shapes:heldout`` is ``shapes:heldout:0``. Sets with different seeds share no scene.
        length: number of scenes; by default 300 held-out or 20 000 training ones.
        size: px a side, 64 to 1024.
        objects: fewest and most objects of a scene, 1 to 32.

    Raises:
        InputError: there is no such data set, or an argument is out of its range.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise InputError(f"got data set {name!r}; expected one of {', '.join(DATASET_NAMES)}")
    split: Split = "train" if name == "shapes:train" else "heldout"
    if length is None:
        length = _TRAIN_LENGTH if split == "train" else _HELD_OUT_LENGTH
    if not 1 <= length <= _STRIDE:
        raise InputError(f"got length {length}; expected 1 to {_STRIDE} scenes")
    check_arguments(0, size, objects)
    first = int(match[1] or 0) * _STRIDE
    return ShapesDataset(
        name=name, split=split, first=first, length=length, size=size, objects=objects
    )
