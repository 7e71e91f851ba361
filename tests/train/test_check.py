"""The look at all files before a run."""

import io
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from escnet.train import check
from escnet.train.check import check_files, require_labelled
from escnet.train.data import open_source
from escnet_runtime.console import Console
from escnet_runtime.dataset import Dataset
from escnet_runtime.errors import InputError
from tests.bench.folders import made_dataset, save_image, save_labels

QUIET = Console(quiet=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made_dataset(tmp_path / "data", images=3)


def check_folder(*folders: Path) -> None:
    check_files([open_source(str(one)) for one in folders], console=QUIET)


def refuse_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: Dataset, index: int) -> None:
        raise AssertionError("pixels were read")

    monkeypatch.setattr(Dataset, "__getitem__", read)


def test_what_is_in_order_is_not_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_labels(folder / "labels" / "photo2.png", np.zeros((40, 40), np.uint16))
    refuse_to_read(monkeypatch)
    check_folder(folder)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:30])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def no_image(path: Path) -> None:
    path.write_text("not an image")


def other_size(path: Path) -> None:
    save_image(path, 10, 11)


def coloured(path: Path) -> None:
    with Image.open(path) as image:
        size = image.size
    Image.new("RGB", size).save(path)


@pytest.mark.parametrize("part", ["images/photo1.jpg", "labels/photo1.png"])
@pytest.mark.parametrize("damage", [cut, empty, no_image, other_size])
def test_what_is_wrong_is_named_as_its_reader_does(
    folder: Path, part: str, damage: Callable[[Path], None]
) -> None:
    damage(folder / part)
    with pytest.raises(InputError, match="of 3 pairs") as caught:
        check_folder(folder)
    with pytest.raises(Exception, match="photo1") as own:
        open_source(str(folder))[1]
    assert str(caught.value).splitlines()[1:] == [f"  {own.value}"]


def test_a_picture_is_no_label_map(folder: Path) -> None:
    coloured(folder / "labels" / "photo0.png")
    with pytest.raises(InputError, match="has mode RGB"):
        check_folder(folder)


def test_of_many_the_first_ten_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_BLOCK", 4)
    train = made_dataset(tmp_path / "train", images=9)
    other = made_dataset(tmp_path / "val", images=9)
    for root in (train, other):
        for index in range(7):
            empty(root / "images" / f"photo{index}.jpg")
    with pytest.raises(InputError, match="of 18 pairs") as caught:
        check_folder(train, other)
    lines = str(caught.value).splitlines()
    assert len(lines) == 12
    assert all("photo" in line for line in lines[1:11])
    assert "val" in lines[8]
    assert lines[11] == "  and up to 4 more"


def test_files_that_are_in_two_sets_are_named_once(folder: Path) -> None:
    empty(folder / "images" / "photo1.jpg")
    with pytest.raises(InputError, match="of 3 pairs") as caught:
        check_folder(folder, folder)
    assert str(caught.value).count("photo1.jpg") == 1


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_a_turned_photo_is_as_large_as_it_is_seen(
    folder: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "images" / "photo1.jpg").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 40)).save(folder / "images" / f"photo1.{suffix}", exif=exif)
    save_labels(folder / "labels" / "photo1.png", np.zeros((32, 40), np.uint8))
    refuse_to_read(monkeypatch)
    check_folder(folder)


@pytest.mark.parametrize(("orientation", "side"), [(2, 40), (3, 40), (4, 40), (6, 32), (8, 32)])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
def test_an_orientation_that_leaves_open_what_the_labels_are_of_is_named(
    folder: Path, suffix: str, orientation: int, side: int
) -> None:
    """Found when its turn came, it would end a run of hours."""
    (folder / "images" / "photo1.jpg").unlink()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (side, 32)).save(folder / "images" / f"photo1.{suffix}", exif=exif)
    save_labels(folder / "labels" / "photo1.png", np.zeros((32, side), np.uint8))
    with pytest.raises(InputError, match=f"photo1.{suffix} has the EXIF orientation {orientation}"):
        check_folder(folder)


def test_the_reader_has_the_last_word(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it learns to read is not refused here."""
    coloured(folder / "labels" / "photo0.png")
    monkeypatch.setattr(Dataset, "__getitem__", lambda self, index: None)
    check_folder(folder)


def test_a_very_large_picture_is_no_mistake(folder: Path) -> None:
    """Pillow warns of it; its header alone is made here."""
    header = io.BytesIO()
    Image.new("L", (1, 1)).save(header, "PNG")
    content = bytearray(header.getvalue())
    content[16:24] = (20_000).to_bytes(4, "big") + (5_000).to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (folder / "images" / "photo1.jpg").unlink()
    for part in ("images", "labels"):
        (folder / part / "photo1.png").write_bytes(content)
    check_folder(folder)


def test_drawn_sets_have_no_files() -> None:
    check_files([open_source("shapes:train", limit=3)], console=QUIET)
    require_labelled(open_source("shapes:heldout", limit=3), "it", "label some")


def test_some_label_is_enough(folder: Path) -> None:
    for index in range(2):
        save_labels(
            folder / "labels" / f"photo{index}.png", np.full((24 + 8 * index, 40), 255, np.uint8)
        )
    require_labelled(open_source(str(folder)), "it", "label some")
    with pytest.raises(InputError, match=r"no pixel of it is labelled \(2 images\).*: label some"):
        require_labelled(open_source(str(folder), limit=2), "it", "label some")
