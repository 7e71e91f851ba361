"""The scenes that ESC-Net's phases are shown."""

import numpy as np

from escnet.foundations.recipe import TINY, TINY_192
from escnet.foundations.scenes import TrainingScenes
from escnet.train.augment import Augmentation
from escnet_runtime.preprocess import resize
from escnet_runtime.world import dataset

WINDOWS = Augmentation(scale=(1.0, 5 / 3), flip=0.5, colour=0.0)


def test_without_more_they_are_the_worlds_own() -> None:
    scenes = TrainingScenes(first=70, sizes=(64,), objects=(2, 10))
    world = dataset("shapes:train", length=100, size=64, objects=(2, 10))
    for index in range(3):
        image, labels = world[70 + index]
        assert np.array_equal(scenes[index].image, image)
        assert np.array_equal(scenes[index].labels, labels)
        assert scenes[index].labels.dtype == np.int64


def test_those_drawn_in_another_size_are_resized() -> None:
    scenes = TrainingScenes(first=0, sizes=(96,), drawn=(64, 128))
    worlds = [dataset("shapes:train", length=100, size=size) for size in (64, 128)]
    seen = set()
    for index in range(12):
        sample = scenes[index]
        pictures = [resize(world[index][0], 96, 96) for world in worlds]
        same = [np.array_equal(sample.image, picture) for picture in pictures]
        assert sum(same) == 1
        seen.add(same.index(True))
        labels = worlds[same.index(True)][index][1]
        assert set(np.unique(sample.labels)) <= set(np.unique(labels))
        # Of the pixel under the middle of each.
        rows = ((np.arange(96) + 0.5) * len(labels) / 96).astype(int)
        assert np.array_equal(sample.labels, labels[rows[:, None], rows])
    assert seen == {0, 1}


def test_parts_of_scenes_follow_from_their_number() -> None:
    one = TrainingScenes(first=5, sizes=(64,), drawn=(64, 96), augmentation=WINDOWS)
    other = TrainingScenes(first=4, sizes=(64,), drawn=(64, 96), augmentation=WINDOWS)
    for index in range(4):
        assert np.array_equal(one[index].image, other[index + 1].image)
        assert np.array_equal(one[index].labels, other[index + 1].labels)
        assert one[index].image.shape == (64, 64, 3)
    whole = TrainingScenes(first=5, sizes=(64,), drawn=(64, 96))
    assert not all(np.array_equal(one[i].labels, whole[i].labels) for i in range(4))


def test_several_sizes_come_as_often_as_they_stand_there() -> None:
    scenes = TrainingScenes(first=0, sizes=(64, 96, 96), objects=(1, 2))
    worlds = {
        size: dataset("shapes:train", length=100, size=size, objects=(1, 2)) for size in (64, 96)
    }
    shown = [len(scenes[index].labels) for index in range(60)]
    assert 8 <= shown.count(64) <= 32
    for index in range(4):
        # Drawn in the size that is shown.
        assert np.array_equal(scenes[index].image, worlds[shown[index]][index][0])


def test_the_recipe_shows_parts_as_large_as_a_sliding_window_does() -> None:
    last = TINY_192.escnet[-1]
    assert last.augmentation.scale == (1.0, 5 / 3)
    assert last.sizes == (192,)
    assert {phase.sizes for phase in TINY.escnet} == {(128,)}
    assert TINY_192.escnet[:-1] == TINY.escnet
