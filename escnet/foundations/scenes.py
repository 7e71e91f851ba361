"""Scenes of the small world for training, without end."""

import numpy as np

from escnet.train.data import TrainingSample
from escnet_runtime.world import dataset

__all__ = ["TrainingScenes"]


class TrainingScenes:
    """Training scenes without end; none is shown twice.

    Args:
        first: number of the first scene.
        size: px a side.
        objects: fewest and most objects of a scene.
    """

    def __init__(self, first: int, size: int, objects: tuple[int, int] = (2, 6)) -> None:
        self._first = first
        self._scenes = dataset("shapes:train", length=1 << 30, size=size, objects=objects)

    def __getitem__(self, index: int) -> TrainingSample:
        image, labels = self._scenes[self._first + index]
        return TrainingSample(image=image, labels=labels.astype(np.int64))
