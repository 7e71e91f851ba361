"""The built-in data sets by name, as scenes and as labelled images; the picture of the world."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from escnet_runtime.dataset import Dataset
from escnet_runtime.errors import InputError
from escnet_runtime.labelled import ShapesImages, dataset_name, open_labelled
from escnet_runtime.world import dataset, render_scene, vocabulary
from escnet_runtime.world.__main__ import main
from escnet_runtime.world.sheet import contact_sheet
from tests.bench.folders import made_dataset


def test_names_of_data_sets() -> None:
    train, held_out = dataset("shapes:train"), dataset("shapes:heldout")
    assert (len(train), len(held_out)) == (20_000, 300)
    assert train.classes == vocabulary("train")
    assert held_out.classes == vocabulary("heldout")
    assert dataset("shapes:heldout:0").first == held_out.first


def test_labels_index_the_classes() -> None:
    data = dataset("shapes:heldout", length=3)
    for index, (image, labels) in enumerate(data):
        scene = render_scene(index, "heldout")
        assert labels.dtype == np.uint16
        np.testing.assert_array_equal(image, scene.image)
        for label, name in enumerate(scene.names):
            assert set(labels[scene.labels == label].tolist()) == {data.classes.index(name)}
        np.testing.assert_array_equal(data[index][1], labels)


def test_sets_with_other_seeds_share_no_scene() -> None:
    sets = [dataset("shapes:heldout"), dataset("shapes:heldout:1"), dataset("shapes:heldout:2")]
    numbers = [set(range(one.first, one.first + len(one))) for one in sets]
    assert len(set.union(*numbers)) == sum(map(len, numbers))
    images = {one[0][0].tobytes() for one in sets}
    assert len(images) == 3


@pytest.mark.parametrize("index", [-1, 2])
def test_an_index_outside_is_an_error(index: int) -> None:
    with pytest.raises(IndexError, match=f"got index {index} of shapes:train with 2 scenes"):
        dataset("shapes:train", length=2)[index]


@pytest.mark.parametrize(
    "name",
    [
        "shapes",
        "shapes:",
        "shapes:test",
        "shapes:train:1",
        "shapes:heldout:-1",
        "shapes:heldout:01",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"got data set '{name}'; expected one of shapes:train"):
        dataset(name)


def test_a_number_of_scenes_is_at_least_one() -> None:
    with pytest.raises(InputError, match="got length 0; expected 1 to"):
        dataset("shapes:train", length=0)


def test_scenes_as_labelled_images() -> None:
    images = open_labelled("shapes:heldout:3", scenes=2, objects=(7, 8))
    assert isinstance(images, ShapesImages)
    assert images.names == vocabulary("heldout")
    assert list(images.groups) == ["held_out", "seen", "surfaces"]
    samples = list(images)
    assert [one.name for one in samples] == ["scene000000", "scene000001"]
    scene = render_scene(3 << 32, "heldout", objects=(7, 8))
    np.testing.assert_array_equal(samples[0].image, scene.image)
    assert len(scene.objects) >= 7


def test_published_names_have_no_folders_of_the_machine(tmp_path: Path) -> None:
    assert dataset_name("shapes:heldout:4") == "shapes:heldout:4"
    assert dataset_name(str(tmp_path / "photos")) == "photos"


def test_anything_else_is_a_folder(tmp_path: Path) -> None:
    root = made_dataset(tmp_path / "data")
    folder = open_labelled(str(root))
    assert isinstance(folder, Dataset)
    assert dict(folder.groups) == {}
    with pytest.raises(InputError, match="is a folder, whose scenes are as they are"):
        open_labelled(str(root), objects=(1, 2))
    with pytest.raises(InputError, match="there is no dataset at shape:train"):
        open_labelled("shape:train")


def test_the_sheet_is_a_picture_that_stays_small(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "world.png"
    assert main(["--picture", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["held_out"]) == 144
    assert len(document["training"]) == 576
    assert path.stat().st_size <= 400_000
    with Image.open(path) as image:
        assert image.width >= 6 * 128


def test_the_sheet_needs_a_seed_from_0() -> None:
    with pytest.raises(InputError, match="got seed -1"):
        contact_sheet(-1)
