"""Dataset folders: what is read, and what is refused with which words."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from escnet_runtime.dataset import Dataset
from escnet_runtime.errors import InputError
from tests.bench.folders import made_dataset, save_image, save_labels


def test_pairs_come_in_order_and_are_read_one_at_a_time(tmp_path: Path) -> None:
    root = made_dataset(tmp_path / "data", images=3)
    dataset = Dataset.open(root)
    assert dataset.names == ("sky", "tree, plant", "wall")
    assert len(dataset) == 3
    samples = iter(dataset)
    (root / "images" / "photo2.jpg").write_bytes(b"broken after the folder was looked over")
    first = next(samples)
    assert first.name == "photo0"
    assert first.image.shape == (24, 40, 3)
    assert first.labels.shape == (24, 40)
    assert np.unique(first.labels).tolist() == [0, 1, 2, 255]
    assert next(samples).name == "photo1"
    with pytest.raises(InputError, match=r"photo2\.jpg"):
        next(samples)


def test_formats_of_images_and_bits_of_labels_may_be_mixed(tmp_path: Path) -> None:
    root = made_dataset(tmp_path)
    save_image(root / "images" / "wide.PNG", 5, 9)
    labels = np.full((5, 9), 65_535, np.uint16)
    labels[0, 0] = 2
    save_labels(root / "labels" / "wide.png", labels)
    palette = Image.fromarray(np.ones((5, 9), np.uint8)).convert("P")
    save_image(root / "images" / "palette.webp", 5, 9)
    palette.save(root / "labels" / "palette.png", bits=2)
    (root / "images" / "._photo0.jpg").write_bytes(b"left by another system")
    (root / "images" / "notes.txt").write_text("no image", encoding="utf-8")
    samples = {sample.name: sample for sample in Dataset.open(root)}
    assert sorted(samples) == ["palette", "photo0", "photo1", "wide"]
    assert samples["wide"].labels.dtype == np.uint16
    assert samples["wide"].labels[0].tolist() == [2, *[65_535] * 8]
    assert samples["palette"].labels.max() == samples["palette"].labels.min()


def _without(name: str) -> Callable[[Path], None]:
    def remove(root: Path) -> None:
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def _empty(name: str) -> Callable[[Path], None]:
    def empty(root: Path) -> None:
        for path in (root / name).iterdir():
            path.unlink()

    return empty


def _lonely_images(root: Path) -> None:
    for index in range(12):
        save_image(root / "images" / f"alone{index:02}.png", 2, 2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no such folder"),
        (_without("images"), r"looked for .*images, which is not there"),
        (_without("labels"), r"looked for .*labels, which is not there"),
        (_without("classes.json"), r"looked for .*classes\.json, which is not there"),
        (_empty("images"), "found 0 images and 2 label maps"),
        (_empty("labels"), "found 2 images and 0 label maps"),
        (_without("labels/photo1.png"), r"images of .* without a label map .*: photo1\.jpg"),
        (_without("images/photo1.jpg"), r"label maps of .* without an image in .*: photo1\.png"),
        (_lonely_images, r"alone00\.png, .*alone09\.png and 2 more"),
        (
            lambda root: save_image(root / "images" / "photo0.png", 24, 40),
            r"several files of one name: photo0\.jpg, photo0\.png",
        ),
        (
            lambda root: (root / "classes.json").write_text("{}", encoding="utf-8"),
            r"classes\.json.*expected a JSON list",
        ),
        (
            lambda root: (root / "classes.json").write_text("[]", encoding="utf-8"),
            r"classes\.json.*no category",
        ),
        (
            lambda root: (root / "classes.json").write_text(
                '["Cat", "dog, hound", "cat", "hound,  Dog"]', encoding="utf-8"
            ),
            r"classes\.json has classes of the same name: 'Cat' .0. and 'cat' .2., "
            r"'dog, hound' .1. and 'hound,  Dog' .3.\.",
        ),
    ],
)
def test_folders_that_are_no_dataset_are_refused(
    damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    root = made_dataset(tmp_path / "data")
    damage(root)
    with pytest.raises(InputError, match=message) as caught:
        Dataset.open(root)
    assert str(root) in str(caught.value)


def _rename(old: str, new: str) -> Callable[[Path], None]:
    def rename(root: Path) -> None:
        (root / old).rename(root / new)

    return rename


def _in_subfolder(root: Path) -> None:
    (root / "images" / "kitchen").mkdir()
    for path in sorted((root / "images").glob("*.jpg")):
        path.rename(root / "images" / "kitchen" / path.name)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            _rename("labels/photo1.png", "labels/Photo1.png"),
            r"without a label map .*: photo1\.jpg; label maps of .* without .*: Photo1\.png$",
        ),
        (
            _rename("images/photo1.jpg", "images/photo1.heic"),
            r"without an image in .*: photo1\.png; not read in .*images: photo1\.heic$",
        ),
        (
            _rename("labels/photo0.png", "labels/photo0.npy"),
            r"without a label map .*: photo0\.jpg; not read in .*labels: photo0\.npy$",
        ),
        (_in_subfolder, r"found 0 images and 2 label maps; not read in .*images: kitchen/$"),
        (
            lambda root: (root / "images" / "photo2.png").symlink_to(root / "gone.png"),
            None,
        ),
        (
            lambda root: (
                (root / "labels" / "photo2.png").write_bytes(b""),
                (root / "images" / "photo2.png").symlink_to(root / "gone.png"),
            ),
            r"without an image in .*: photo2\.png; not read in .*images: photo2\.png$",
        ),
    ],
)
def test_what_is_there_and_not_read_is_named_beside_what_is_missing(
    damage: Callable[[Path], object], message: str | None, tmp_path: Path
) -> None:
    root = made_dataset(tmp_path / "data")
    damage(root)
    if message is None:
        assert len(Dataset.open(root)) == 2
        return
    with pytest.raises(InputError, match=message):
        Dataset.open(root)


def test_a_name_is_the_same_however_its_accents_are_spelled(tmp_path: Path) -> None:
    root = made_dataset(tmp_path / "data", images=1)
    one, two = "gr\u00f6\u00dfe", "gro\u0308\u00dfe"
    (root / "images" / "photo0.jpg").rename(root / "images" / f"{one}.jpg")
    (root / "labels" / "photo0.png").rename(root / "labels" / f"{two}.png")
    assert [sample.name for sample in Dataset.open(root)] == [one]
    save_image(root / "images" / f"{two}.jpg", 40, 32)
    with pytest.raises(InputError, match="several files of one name"):
        Dataset.open(root)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full((32, 40), 3, np.uint8), r"photo1\.png has the label 3; expected 0 to 2.*or 255"),
        (np.full((32, 40), 255, np.uint16), r"the label 255; expected 0 to 2.*or 65535"),
        (np.zeros((32, 40, 3), np.uint8), r"photo1\.png has mode RGB"),
        (np.zeros((40, 32), np.uint8), r"photo1\.png has 32×40 pixels and its image 40×32"),
    ],
)
def test_labels_that_do_not_fit_name_their_file(
    labels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], message: str, tmp_path: Path
) -> None:
    root = made_dataset(tmp_path / "data")
    save_labels(root / "labels" / "photo1.png", labels)
    samples = iter(Dataset.open(root))
    next(samples)
    with pytest.raises(InputError, match=message):
        next(samples)


def test_a_damaged_label_map_names_its_file(tmp_path: Path) -> None:
    root = made_dataset(tmp_path / "data")
    path = root / "labels" / "photo0.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"photo0\.png"):
        list(Dataset.open(root))


def _oriented(root: Path, stored: tuple[int, int], orientation: int, suffix: str) -> Path:
    """A dataset of one picture whose pixels say where they are stored; its labels are to follow."""
    rows, columns = np.indices(stored)
    pixels = np.stack([rows, columns, np.zeros(stored, int)], axis=2).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    (root / "images").mkdir(parents=True)
    Image.fromarray(pixels).save(root / "images" / f"a.{suffix}", exif=exif, lossless=True)
    names = [f"class {index}" for index in range(100)]
    (root / "classes.json").write_text(json.dumps(names), encoding="utf-8")
    return root


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("drawn_on", ["stored", "shown"])
def test_labels_lie_on_a_turned_image_where_their_size_tells(
    drawn_on: str, orientation: int, suffix: str, tmp_path: Path
) -> None:
    root = _oriented(tmp_path / "data", (5, 8), orientation, suffix)
    rows, columns = np.indices((5, 8), np.uint8)
    labels = Image.fromarray(rows * np.uint8(8) + columns)
    if drawn_on == "shown":
        labels.getexif()[0x0112] = orientation
        labels = ImageOps.exif_transpose(labels)
    (root / "labels").mkdir()
    labels.save(root / "labels" / "a.png")
    (sample,) = Dataset.open(root)
    assert sample.image.shape == (8, 5, 3)
    np.testing.assert_array_equal(sample.labels, sample.image[:, :, 0] * 8 + sample.image[:, :, 1])
    assert sample.labels.flags.c_contiguous


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
@pytest.mark.parametrize(
    ("orientation", "stored", "how"),
    [
        (2, (5, 8), "mirrored"),
        (3, (5, 8), "turned by 180 degrees"),
        (4, (5, 8), "mirrored top to bottom"),
        *[(number, (6, 6), "EXIF orientation") for number in range(2, 9)],
    ],
)
def test_an_orientation_that_leaves_the_labels_open_is_refused(
    orientation: int, stored: tuple[int, int], how: str, suffix: str, tmp_path: Path
) -> None:
    root = _oriented(tmp_path / "data", stored, orientation, suffix)
    save_labels(root / "labels" / "a.png", np.zeros(stored, np.uint8))
    with pytest.raises(InputError, match=rf"a\.{suffix} has the EXIF orientation") as caught:
        list(Dataset.open(root))
    message = str(caught.value)
    assert f"EXIF orientation {orientation}, by which it is shown" in message
    assert how in message
    assert "Save the image without the orientation" in message
    save_labels(root / "labels" / "a.png", np.zeros((5, 9), np.uint8))
    with pytest.raises(InputError, match=f"turned by its EXIF orientation {orientation}; expected"):
        list(Dataset.open(root))


@pytest.mark.parametrize("orientation", [0, 1, 9])
def test_an_orientation_that_turns_nothing_is_no_matter(orientation: int, tmp_path: Path) -> None:
    root = _oriented(tmp_path / "data", (6, 6), orientation, "png")
    save_labels(root / "labels" / "a.png", np.zeros((6, 6), np.uint8))
    (sample,) = Dataset.open(root)
    assert sample.image[1, 0].tolist() == [1, 0, 0]
