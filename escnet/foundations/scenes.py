"""Scenes of the small world for training, without end."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from escnet.train.augment import NO_AUGMENTATION, Augmentation, augmented
from escnet.train.data import TrainingSample
from escnet_runtime.world import dataset

__all__ = ["TrainingScenes"]

#: Keeps the choice of a scene's size and its augmentation apart from other random numbers.
_STREAM: Final = 2


class TrainingScenes:
    """Training scenes without end; none is shown twice.

    Args:
        first: number of the first scene.
        sizes: px a side of what is shown, each as often as it stands there.
        objects: fewest and most objects of a scene.
        drawn: px a side in which scenes are drawn, each as often as it stands there; by default
            what is shown. Those of another size are resized.
        augmentation: what is left to chance, after that.
    """

    def __init__(
        self,
        first: int,
        sizes: Sequence[int],
        objects: tuple[int, int] = (2, 6),
        drawn: Sequence[int] = (),
        augmentation: Augmentation = NO_AUGMENTATION,
    ) -> None:
        self._first, self._sizes, self._augmentation = first, sizes, augmentation
        self._drawn = drawn
        self._scenes = {
            side: dataset("shapes:train", length=1 << 30, size=side, objects=objects)
            for side in {*sizes, *drawn}
        }

    def __getitem__(self, index: int) -> TrainingSample:
        number = self._first + index
        rng = np.random.Generator(np.random.PCG64((_STREAM, number)))
        drawn = self._drawn[int(rng.integers(len(self._drawn)))] if self._drawn else None
        size = self._sizes[int(rng.integers(len(self._sizes)))]
        image, labels = self._scenes[size if drawn is None else drawn][number]
        image, classes = augmented(
            image, labels, size=size, augmentation=self._augmentation, rng=rng
        )
        return TrainingSample(image=image, labels=classes)
