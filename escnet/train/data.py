"""What segmentation is trained on: an image of the model's size and its labels, by number."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from escnet_runtime.dataset import Dataset, LabelledImages, Sample
from escnet_runtime.errors import InputError
from escnet_runtime.labelled import SHAPES, ShapesImages
from escnet_runtime.world import dataset

from .augment import IGNORED, NO_AUGMENTATION, Augmentation, augmented
from .order import Shuffled

__all__ = [
    "IGNORED",
    "LabelledSource",
    "TrainingSample",
    "TrainingSamples",
    "file_pairs",
    "open_source",
]

#: Keeps the augmentation's random numbers apart from others of the same seed and index.
_STREAM: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingSample:
    """An image, uint8 [S, S, 3] RGB, and its labels, int64 [S, S]; -1 is not labelled."""

    image: NDArray[np.uint8]
    labels: NDArray[np.int64]


class LabelledSource(LabelledImages, Protocol):
    """Labelled images by number; each is read or drawn when it is asked for."""

    def __getitem__(self, index: int) -> Sample: ...


def open_source(name: str, *, size: int = 128, limit: int | None = None) -> LabelledSource:
    """The images of a dataset folder, or of a set of the built-in world.

    Args:
        name: path of a folder, or ``shapes:train``, ``shapes:heldout``, ``shapes:heldout:SEED``.
        size: px a side of built-in scenes; by default what escnet-eval draws.
        limit: the first so many images alone.

    Raises:
        InputError: there is no such data set, or the limit is less than 1.
    """
    if limit is not None and limit < 1:
        raise InputError(f"the limit is {limit} images; expected at least 1")
    source: LabelledSource
    if name.startswith(SHAPES):
        source = ShapesImages(scenes=dataset(name, size=size))
    else:
        source = Dataset.open(Path(name))
    return source if limit is None or limit >= len(source) else _First(source, limit)


def file_pairs(source: LabelledSource) -> Sequence[tuple[Path, Path]] | None:
    """The files (image, labels) of a folder's images, in their order; None where they are drawn."""
    match source:
        case Dataset():
            return source.pairs
        case _First():
            pairs = file_pairs(source.source)
            return None if pairs is None else pairs[: source.count]
    return None


class TrainingSamples:
    """An endless list of :class:`TrainingSample`: number → sample, epoch after epoch.

    A sample follows from ``seed`` and its number alone, in any process.

    Args:
        source: labelled images, of any size.
        size: S, px a side of a sample: the model's image size.
        augmentation: what is left to chance.
        seed: of order and augmentation.
    """

    def __init__(
        self,
        source: LabelledSource,
        *,
        size: int,
        augmentation: Augmentation = NO_AUGMENTATION,
        seed: int = 0,
    ) -> None:
        self.names = source.names
        self._size, self._augmentation, self._seed = size, augmentation, seed
        self._images = Shuffled(source, seed)

    def __getitem__(self, index: int) -> TrainingSample:
        """Sample ``index``, from 0; raises what reading the source's image raises."""
        sample = self._images[index]
        rng = np.random.Generator(np.random.PCG64((self._seed, _STREAM, index)))
        image, labels = augmented(
            sample.image,
            sample.labels,
            size=self._size,
            augmentation=self._augmentation,
            rng=rng,
        )
        return TrainingSample(image=image, labels=labels)


@dataclass(frozen=True, slots=True)
class _First:
    """The first images of a source."""

    source: LabelledSource
    count: int

    @property
    def names(self) -> tuple[str, ...]:
        return self.source.names

    @property
    def groups(self) -> Mapping[str, tuple[int, ...]]:
        return self.source.groups

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(f"got index {index} of {self.count} images")
        return self.source[index]

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(self.count))
