"""Samples by number: order, augmentation, sources."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from escnet.train.augment import IGNORED, NO_AUGMENTATION, Augmentation, augmented
from escnet.train.data import TrainingSamples, open_source
from escnet_runtime.dataset import Dataset
from escnet_runtime.errors import ImageError, InputError
from escnet_runtime.images import ImageArray
from escnet_runtime.preprocess import resize
from tests.bench.folders import made_dataset

PLAIN = Augmentation(flip=0.0, colour=0.0)


def picture(height: int, width: int) -> tuple[ImageArray, NDArray[np.uint8]]:
    """Four labels; the image's red is 60 times the label, green and blue say where a pixel is."""
    y, x = np.mgrid[:height, :width]
    labels = (2 * (y >= height // 2) + (x >= width // 2)).astype(np.uint8)
    image = np.stack([60 * labels, 255 * y // height, 255 * x // width], axis=-1)
    return image.astype(np.uint8), labels


def cut(
    height: int, width: int, augmentation: Augmentation, seed: int = 0, size: int = 32
) -> tuple[ImageArray, NDArray[np.int64]]:
    image, labels = picture(height, width)
    rng = np.random.default_rng(seed)
    return augmented(image, labels, size=size, augmentation=augmentation, rng=rng)


def test_without_chance_it_is_what_evaluation_sees() -> None:
    image, _ = picture(50, 90)
    found, labels = cut(50, 90, NO_AUGMENTATION)
    np.testing.assert_array_equal(found, resize(image, 32, 32))
    assert labels.dtype == np.int64
    assert np.unique(labels).tolist() == [0, 1, 2, 3]
    assert (labels == 0).sum() == 16 * 16


def test_an_image_of_the_right_size_is_left_alone() -> None:
    image, labels = picture(32, 32)
    for augmentation in (NO_AUGMENTATION, PLAIN):
        found, classes = cut(32, 32, augmentation)
        np.testing.assert_array_equal(found, image)
        np.testing.assert_array_equal(classes, labels)


@pytest.mark.parametrize(("height", "width"), [(64, 200), (200, 64), (20, 90), (1, 7)])
def test_a_crop_keeps_the_aspect_and_fills_the_square(height: int, width: int) -> None:
    places = set()
    for seed in range(8):
        found, labels = cut(height, width, PLAIN, seed)
        assert found.shape == (32, 32, 3)
        assert (labels != IGNORED).all()
        places.add(found.tobytes())
    assert len(places) > 4  # at different places


def test_labels_move_with_the_image() -> None:
    """Red is 60 times the label but near edges; were one flipped alone, half would be wrong."""
    for seed in range(20):
        wild = Augmentation(scale=(0.5, 2.0), flip=0.5, colour=0.0)
        found, labels = cut(60, 80, wild, seed)
        red = found[:, :, 0].astype(int)
        inside = labels != IGNORED
        agrees = np.abs(red - 60 * labels) <= 1
        assert agrees[inside].mean() > 0.7


def test_what_lies_outside_of_the_image_is_grey_and_ignored() -> None:
    found, labels = cut(40, 60, Augmentation(scale=(0.5, 0.5), flip=0.0, colour=0.0))
    inside = labels != IGNORED
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    assert (len(rows), len(columns)) == (16, 24)
    assert inside.sum() == 16 * 24  # one rectangle
    assert (found[~inside] == 128).all()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_pixels_that_are_not_labelled_stay_so(kind: type[np.uint8] | type[np.uint16]) -> None:
    image, labels = picture(32, 32)
    labels = labels.astype(kind)
    labels[:5] = np.iinfo(kind).max
    _, classes = augmented(
        image, labels, size=32, augmentation=NO_AUGMENTATION, rng=np.random.default_rng(0)
    )
    assert (classes[:5] == IGNORED).all()
    assert (classes[5:] != IGNORED).all()


def test_a_label_is_that_of_the_pixel_in_the_middle() -> None:
    """Of three by five pixels that become one: at the corner, labels would lie beside the image."""
    labels = np.arange(9 * 15, dtype=np.uint8).reshape(9, 15)
    image = np.zeros((9, 15, 3), np.uint8)
    rng = np.random.default_rng(0)
    _, classes = augmented(image, labels, size=3, augmentation=NO_AUGMENTATION, rng=rng)
    np.testing.assert_array_equal(classes, labels[1::3, 2::5])


def test_a_flip_mirrors_both() -> None:
    image, labels = picture(32, 32)
    found, classes = cut(32, 32, Augmentation(flip=1.0, colour=0.0))
    np.testing.assert_array_equal(found, image[:, ::-1])
    np.testing.assert_array_equal(classes, labels[:, ::-1])


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_colour_change_changes_colours_alone(name: str) -> None:
    off: dict[str, Any] = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    image, labels = picture(32, 32)
    found, classes = cut(32, 32, Augmentation(flip=0.0, colour=1.0, **{**off, name: 0.3}), seed=1)
    assert (found != image).any()
    np.testing.assert_array_equal(classes, labels)
    same, _ = cut(32, 32, Augmentation(flip=0.0, colour=1.0, **off))
    np.testing.assert_array_equal(same, image)


@pytest.mark.parametrize(
    ("name", "on_flat_grey", "on_grey", "on_a_colour"),
    [
        ("brightness", True, True, True),
        ("contrast", False, True, True),
        ("saturation", False, False, True),
        ("hue", False, False, True),
    ],
)
def test_a_colour_change_is_what_its_name_says(
    name: str, on_flat_grey: bool, on_grey: bool, on_a_colour: bool
) -> None:
    off: dict[str, Any] = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    augmentation = Augmentation(flip=0.0, colour=1.0, **{**off, name: 0.3})
    flat = np.full((16, 16, 3), 100, np.uint8)
    ramp = np.linspace(40, 160, 16).astype(np.uint8)[:, None, None].repeat(16, 1).repeat(3, 2)
    colour = flat + np.array([60, 0, 30], np.uint8)

    def changed(image: ImageArray, seed: int) -> NDArray[np.int64]:
        labels = np.zeros((16, 16), np.uint8)
        rng = np.random.default_rng(seed)
        found, _ = augmented(image, labels, size=16, augmentation=augmentation, rng=rng)
        return found.astype(np.int64)

    for seed in range(3):
        assert (changed(flat, seed) != flat).any() == on_flat_grey
        assert (changed(ramp, seed) != ramp).any() == on_grey
        assert (changed(colour, seed) != colour).any() == on_a_colour
    if name == "hue":  # as light and as colourful as before
        found = changed(colour, 0)
        assert (abs(found.max(2) - 160) <= 1).all()
        assert (abs(found.min(2) - 100) <= 1).all()
    if name == "saturation":
        assert (abs(np.ptp(changed(colour, 0), axis=2) - 60) > 1).all()


def test_a_change_is_as_often_less_as_more() -> None:
    grey, labels = np.full((8, 8, 3), 100, np.uint8), np.zeros((8, 8), np.uint8)
    augmentation = Augmentation(
        flip=0.0, colour=1.0, brightness=0.3, contrast=0.0, saturation=0.0, hue=0.0
    )
    found = np.array(
        [
            augmented(
                grey, labels, size=8, augmentation=augmentation, rng=np.random.default_rng(seed)
            )[0].mean()
            for seed in range(100)
        ]
    )
    assert 69 <= found.min() < 80
    assert 120 < found.max() <= 131
    assert 30 < (found < 100).sum() < 70


def test_colours_change_in_some_images() -> None:
    image, _ = picture(32, 32)
    changed = [
        (cut(32, 32, Augmentation(flip=0.0, colour=0.2), seed)[0] != image).any()
        for seed in range(30)
    ]
    assert 5 < sum(changed) < 29


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made_dataset(tmp_path / "data", images=5)


def test_a_sample_follows_from_seed_and_number_alone(folder: Path) -> None:
    source = open_source(str(folder), size=32)
    wild = Augmentation(scale=(0.5, 2.0))

    def samples(seed: int) -> TrainingSamples:
        return TrainingSamples(source, size=32, augmentation=wild, seed=seed)

    first, second = samples(3), samples(3)
    ahead = [first[index] for index in range(12)]
    for index in reversed(range(12)):
        np.testing.assert_array_equal(ahead[index].image, second[index].image)
        np.testing.assert_array_equal(ahead[index].labels, second[index].labels)
    other = samples(4)
    assert any((ahead[i].image != other[i].image).any() for i in range(12))


def test_each_epoch_shows_every_image_once_in_an_order_of_its_own(folder: Path) -> None:
    source = open_source(str(folder), size=32)
    samples = TrainingSamples(source, size=32)
    every = {resize(sample.image, 32, 32).tobytes(): index for index, sample in enumerate(source)}
    shown = [every[samples[index].image.tobytes()] for index in range(20)]
    epochs = [shown[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_the_built_in_world_has_the_models_size() -> None:
    source = open_source("shapes:train", size=96, limit=3)
    samples = TrainingSamples(source, size=96)
    assert len(source) == 3
    assert samples[0].image.shape == (96, 96, 3)
    assert (samples[0].labels != IGNORED).all()
    assert samples.names == source.names
    assert len([*source]) == 3
    with pytest.raises(IndexError):
        source[3]


def test_a_limit_leaves_the_first_images(folder: Path) -> None:
    names = [sample.name for sample in open_source(str(folder), size=32, limit=2)]
    assert names == [sample.name for sample in Dataset.open(folder)][:2]
    assert len(open_source(str(folder), size=32, limit=99)) == 5


@pytest.mark.parametrize("name", ["none", "shapes:none", "shapes:heldout:-1"])
def test_a_source_that_is_not_there_is_an_input_error(name: str) -> None:
    with pytest.raises(InputError):
        open_source(name, size=128)


def test_a_limit_of_nothing_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="the limit is 0 images"):
        open_source(str(folder), size=32, limit=0)


def test_a_damaged_image_is_named_when_its_turn_comes(folder: Path) -> None:
    samples = TrainingSamples(open_source(str(folder), size=32), size=32)
    (folder / "images" / "photo2.jpg").write_bytes(b"")
    with pytest.raises(ImageError, match="photo2"):
        [samples[index] for index in range(5)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": (0.0, 1.0)},
        {"scale": (2.0, 1.0)},
        {"flip": -0.1},
        {"colour": float("nan")},
        {"hue": 0.51},
    ],
)
def test_augmentations_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Augmentation(**wrong)  # type: ignore[arg-type]
