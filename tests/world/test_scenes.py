"""Scenes: the same everywhere, true to their labels, of the right split, at every size."""

import hashlib
import subprocess
import sys
from functools import cache

import numpy as np
import pytest

from escnet_runtime.errors import InputError
from escnet_runtime.world import Scene, render_scene
from escnet_runtime.world.cast import draw_cast
from escnet_runtime.world.fields import stream
from escnet_runtime.world.words import DISTRACTORS, HELD_OUT, SPLITS, STUFF, TRAINING, Split

_HELD_OUT = {one.name for one in HELD_OUT}
_TRAINING = {one.name for one in TRAINING}
_DISTRACTORS = {one.name for one in DISTRACTORS}
_SEEDS = range(20)

_EVERYTHING = """
import hashlib
from escnet_runtime.world import caption_crops, prompt_sample, render_scene
digest = hashlib.sha256()
for split in ("heldout", "train"):
    scene = render_scene(5, split)
    digest.update(scene.image.tobytes() + scene.labels.tobytes() + repr(scene.objects).encode())
for crop in caption_crops(5):
    digest.update(crop.image.tobytes() + repr((crop.captions, crop.seen)).encode())
sample = prompt_sample(5, points=3, coarse=True)
digest.update(sample.image.tobytes() + sample.points.tobytes() + sample.coarse.tobytes())
print(digest.hexdigest())
"""


@cache
def scene_of(seed: int, split: Split) -> Scene:
    return render_scene(seed, split)


def label_hash(scene: Scene) -> str:
    named = scene.labels.tobytes() + "\n".join(scene.names).encode()
    return hashlib.sha256(named).hexdigest()[:16]


@pytest.mark.parametrize(
    ("seed", "split", "size", "objects", "expected"),
    [
        (0, "train", 128, (2, 6), "0804ca913c58877f"),
        (19_999, "train", 128, (1, 6), "2ad5218ca63b1d1d"),
        (0, "heldout", 128, (2, 6), "bfe23dd180e4b939"),
        (299, "heldout", 128, (2, 6), "058560e439c8c330"),
        (1 << 32, "heldout", 128, (6, 10), "325852fde2800029"),
        (3, "heldout", 200, (2, 6), "eaea08e6a6ecfdc9"),
    ],
)
def test_label_maps_are_those_of_the_version(
    seed: int, split: Split, size: int, objects: tuple[int, int], expected: str
) -> None:
    """Pictures are not pinned: noise passes through sine, logarithm and FFT of the machine."""
    scene = render_scene(seed, split, size=size, objects=objects)
    assert label_hash(scene) == expected


def test_another_process_draws_the_same() -> None:
    def drawn() -> str:
        command = [sys.executable, "-c", _EVERYTHING]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        return done.stdout

    assert drawn() == drawn()


def test_a_scene_does_not_depend_on_those_before() -> None:
    again = render_scene(7, "heldout")
    np.testing.assert_array_equal(again.image, scene_of(7, "heldout").image)
    np.testing.assert_array_equal(again.labels, scene_of(7, "heldout").labels)


def test_scenes_differ() -> None:
    images = {scene_of(seed, split).image.tobytes() for seed in _SEEDS for split in SPLITS}
    assert len(images) == 2 * len(_SEEDS)


@pytest.mark.parametrize("split", SPLITS)
def test_labels_say_what_is_there(split: Split) -> None:
    for seed in _SEEDS:
        scene = scene_of(seed, split)
        assert scene.image.shape == (128, 128, 3)
        assert scene.image.dtype == np.uint8
        assert np.unique(scene.labels).tolist() == list(range(len(scene.names)))
        assert len(set(scene.names)) == len(scene.names)
        assert 2 <= len(scene.objects) <= 6
        assert np.unique(scene.instances[scene.instances >= 0]).tolist() == list(
            range(len(scene.objects))
        )
        for index, one in enumerate(scene.objects):
            mask = scene.instances == index
            assert {scene.names[label] for label in np.unique(scene.labels[mask])} == {one.name}
            left, top, right, bottom = one.box
            assert mask[top:bottom, left:right].sum() == mask.sum()
            assert mask[top].any()
            assert mask[bottom - 1].any()
            assert mask[:, left].any()
            assert mask[:, right - 1].any()
            assert 0.5 <= one.visible <= 1
        backdrop = {scene.names[label] for label in np.unique(scene.labels[scene.instances < 0])}
        assert backdrop <= set(STUFF)


def test_training_scenes_have_training_compositions_alone() -> None:
    for seed in _SEEDS:
        assert {one.name for one in scene_of(seed, "train").objects} <= _TRAINING


def test_held_out_scenes_have_what_is_new_and_distractors() -> None:
    seen: set[str] = set()
    for seed in _SEEDS:
        names = {one.name for one in scene_of(seed, "heldout").objects}
        assert names & _HELD_OUT
        assert names <= _HELD_OUT | _DISTRACTORS
        seen |= names
    assert seen & _DISTRACTORS


@pytest.mark.parametrize("first", [0, 1 << 32])
def test_144_held_out_scenes_in_a_row_have_all_that_is_held_out(first: int) -> None:
    casts = (
        draw_cast(stream("heldout", seed, 128, 2, 6), seed, "heldout", (2, 6))
        for seed in range(first, first + 144)
    )
    assert {cast[0].name for cast in casts} == _HELD_OUT


@pytest.mark.parametrize(
    ("size", "objects"), [(64, (1, 1)), (65, (2, 6)), (333, (2, 4)), (1024, (2, 6))]
)
def test_every_size_has_scenes(size: int, objects: tuple[int, int]) -> None:
    scene = render_scene(1, "heldout", size=size, objects=objects)
    assert scene.image.shape == (size, size, 3)
    assert scene.labels.shape == scene.instances.shape == (size, size)
    assert objects[0] <= len(scene.objects) <= objects[1]
    smallest = min(np.count_nonzero(scene.instances == i) for i in range(len(scene.objects)))
    assert smallest >= 12


@pytest.mark.parametrize("size", [64, 128])
def test_many_objects_find_their_place(size: int) -> None:
    for seed in range(3):
        scene = render_scene(seed, "heldout", size=size, objects=(12, 16))
        assert 12 <= len(scene.objects) <= 16


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"seed": -1}, "got seed -1; expected 0 or more"),
        ({"size": 63}, "got size 63; expected 64 to 1024 pixels"),
        ({"size": 1025}, "got size 1025; expected 64 to 1024 pixels"),
        ({"objects": (0, 3)}, "got 0 to 3 objects; expected .* from 1 to 32"),
        ({"objects": (4, 3)}, "got 4 to 3 objects"),
        ({"objects": (1, 33)}, "got 1 to 33 objects"),
        ({"split": "val"}, "got split 'val'; expected one of train, heldout"),
    ],
)
def test_arguments_out_of_range_are_refused(words: dict[str, object], message: str) -> None:
    arguments = {"seed": 0, "split": "train", **words}
    with pytest.raises(InputError, match=message):
        render_scene(**arguments)  # type: ignore[arg-type]
