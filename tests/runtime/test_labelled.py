"""Labels that look like masks of 0 and 255 are said, and what is merely rare is not."""

from pathlib import Path

import numpy as np
import pytest

from escnet_runtime.confusion import ConfusionCounter
from escnet_runtime.dataset import Dataset, LabelledImages
from escnet_runtime.labelled import PREPARED, ShapesImages, absent_warning
from escnet_runtime.world import dataset

MASK = [0, 255]


def counted(classes: int, labels: list[int]) -> ConfusionCounter:
    counter = ConfusionCounter(classes)
    truth = np.array([labels], np.uint8)
    counter.add(np.zeros_like(truth), truth)
    return counter


def images(root: Path, classes: int) -> Dataset:
    return Dataset(root=root, names=tuple(f"c{index}" for index in range(classes)), pairs=())


@pytest.mark.parametrize(("classes", "names"), [(2, "'c1'"), (3, "'c1', 'c2'")])
def test_classes_without_a_pixel_are_named(tmp_path: Path, classes: int, names: str) -> None:
    found = absent_warning(images(tmp_path, classes), counted(classes, MASK))
    assert found is not None
    assert found.startswith(f"no pixel of {tmp_path} is labelled as {names}, ")
    assert '255 (in 16 bits 65535) means "not labelled"' in found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("classes", "labels"),
    [
        (2, [0, 1, 255]),  # all are there
        (2, [0, 0]),  # nothing that was meant to be a class
        (2, [255, 255]),  # an error, elsewhere
        (21, MASK),  # many: some are rare
    ],
)
def test_what_is_in_order_or_common_is_not_said(
    tmp_path: Path, classes: int, labels: list[int]
) -> None:
    assert absent_warning(images(tmp_path, classes), counted(classes, labels)) is None


def test_folders_of_escnet_prepare_and_drawn_scenes_are_right(tmp_path: Path) -> None:
    (tmp_path / PREPARED).touch()
    drawn: LabelledImages = ShapesImages(scenes=dataset("shapes:heldout"))
    for source in (images(tmp_path, 2), drawn):
        assert absent_warning(source, counted(len(source.names), MASK)) is None
