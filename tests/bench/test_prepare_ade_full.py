"""ADE20K-847: the names of each image's objects, and those that a file gives them."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from escnet_bench.class_names import match_synonyms
from escnet_bench.prepare.shrink import shrunk_size
from escnet_runtime.dataset import Dataset
from tests.bench.distributed import full_ade_tree, prepare, prepared, refused

_OTHERS = [f"class {index}" for index in range(845)]


def names_file(folder: Path, names: Sequence[str]) -> Path:
    """847 names, of which these are the last."""
    path = folder / "ade847.json"
    listed = [f"class {index}" for index in range(847 - len(names))]
    path.write_text(json.dumps([*listed, *names]), encoding="utf-8")
    return path


def test_the_names_of_each_image_are_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = full_ade_tree(tmp_path / "ADE20K_2021_17_01")
    names = names_file(tmp_path, ["building, edifice", "wall"])
    dataset = prepared(capsys, "ade20k-847", source, "--classes-file", names)
    (sample,) = dataset
    assert sample.labels.dtype == np.uint16
    assert sample.labels.tolist() == [[846, 845, 65_535, 65_535]]
    assert sample.name == "ADE_val_00000005"


@pytest.mark.parametrize("spelled", ["Building,  Edifice", "building", "edifice", "BUILDING"])
def test_names_are_matched_whatever_their_case_blanks_and_synonyms(
    spelled: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = full_ade_tree(tmp_path / "ade")
    names = names_file(tmp_path, [spelled, "Wall "])
    dataset = prepared(capsys, "ade20k-847", source, "--classes-file", names)
    assert next(iter(dataset)).labels.tolist() == [[846, 845, 65_535, 65_535]]
    assert dataset.names[845:] == (spelled, "Wall")


def test_names_of_no_object_are_listed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source, output = full_ade_tree(tmp_path / "ade"), tmp_path / "prepared"
    names = names_file(tmp_path, ["bilding", "wall", "rare"])
    words = ("ade20k-847", source, "--classes-file", names, "--output", output)
    code, document = prepare(capsys, *words)
    assert code == 0
    assert document["warnings"][0].startswith("ade20k-847 val has 1 images with labels here")
    said = document["warnings"][1]
    assert said.startswith("846 of 847 names are those of no object in this split")
    marker = json.loads((output / "prepared.json").read_text(encoding="utf-8"))
    assert marker["names_not_found"][843:] == [*_OTHERS[843:844], "bilding", "rare"]
    assert len(marker["names_not_found"]) == 846
    assert marker["warnings"] == document["warnings"]
    names_file(tmp_path, ["edifice", "wall"])
    document = prepare(capsys, *words)[1]
    expected = "1 names are taken without all synonyms: 'edifice' for 'building, edifice'"
    assert document["warnings"][1] == expected


def test_a_number_without_a_name_is_not_labelled_and_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = full_ade_tree(tmp_path / "ade", objects={2978: "wall", 313: "building, edifice"})
    names, output = names_file(tmp_path, ["building, edifice", "wall"]), tmp_path / "prepared"
    words = ("ade20k-847", source, "--classes-file", names, "--output", output)
    code, document = prepare(capsys, *words)
    assert code == 0
    said = "2 pixels of 1 images have a class number that their .json does not name"
    assert document["warnings"][-1].startswith(said)
    assert document["warnings"][-1].endswith("ADE_val_00000005")
    assert document["labelled"] == 0.25
    marker = json.loads((output / "prepared.json").read_text(encoding="utf-8"))
    assert marker["warnings"] == document["warnings"]


def test_shorter_sides_are_shrunk_as_in_published_figures(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = full_ade_tree(tmp_path / "ade")
    names, output = names_file(tmp_path, ["building, edifice", "wall"]), tmp_path / "prepared"
    words = ("ade20k-847", source, "--classes-file", names, "--output", output)
    (image,) = source.rglob("*.jpg")
    seg = image.with_name(f"{image.stem}_seg.png")
    pixels = np.zeros((600, 1200, 3), np.uint8)
    Image.fromarray(pixels + 100).save(image)
    pixels[:, :, 0], pixels[:, :, 1] = 2978 // 256 * 10, 2978 % 256  # wall
    pixels[:, 600:, 0], pixels[:, 600:, 1] = 312 // 256 * 10, 312 % 256  # building
    Image.fromarray(pixels).save(seg)
    document = prepare(capsys, *words)[1]
    assert "1 images are larger than in published figures" in document["warnings"][-1]
    assert "--shorter-side 512" in document["warnings"][-1]
    assert next(iter(Dataset.open(output))).labels.shape == (600, 1200)

    document = prepare(capsys, *words, "--shorter-side", "512")[1]
    assert not any("than in published figures" in warning for warning in document["warnings"])
    assert document["origin"].endswith(", shorter sides shrunk to 512 px")
    assert json.loads((output / "prepared.json").read_text(encoding="utf-8"))["shorter_side"] == 512
    (sample,) = Dataset.open(output)
    assert sample.image.shape == (512, 1024, 3)
    assert (sample.image == 100).all()
    assert (sample.labels[:, :512] == 846).all()
    assert (sample.labels[:, 512:] == 845).all()

    prepare(capsys, *words, "--shorter-side", "600")  # nothing is larger, nothing enlarged
    assert (output / "images" / image.name).samefile(image)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned; the labels are of the stored pixels
    Image.fromarray(pixels).save(image, exif=exif)
    prepare(capsys, *words, "--shorter-side", "512")
    (sample,) = Dataset.open(output)
    assert sample.image.shape == (1024, 512, 3)
    assert sample.labels.shape == (1024, 512)

    image.write_bytes(image.read_bytes()[:1000])
    code, document = prepare(capsys, *words, "--shorter-side", "512")
    assert code == 2
    assert "cannot read the image" in document["error"]["message"]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((600, 1200), (512, 1024)),
        ((683, 513), (682, 512)),
        ((512, 2000), (512, 2000)),
        ((4, 1), (4, 1)),
    ],
)
def test_sizes_are_those_of_the_published_preparation(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert shrunk_size(*size, 512) == expected


def test_what_is_something_else_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = full_ade_tree(tmp_path / "ade")
    names = tmp_path / "ade847.json"
    words = ("ade20k-847", source, "--classes-file", names)
    assert "needs --classes-file" in refused(capsys, "ade20k-847", source)
    names.write_text('["wall"]', encoding="utf-8")
    assert "has 1 names; expected 847" in refused(capsys, *words)
    names_file(tmp_path, ["sea, wall", "Wall,  sea"])
    assert "has names twice: Wall,  sea, sea, wall" in refused(capsys, *words)
    names_file(tmp_path, ["of another data set"])
    assert "none of the 1 label maps has a labelled pixel" in refused(capsys, *words)
    json_file = next(source.rglob("*.json"))
    json_file.write_text('{"annotation": {}}', encoding="utf-8")
    assert "annotation.object[]" in refused(capsys, *words)
    json_file.unlink()
    assert "NAME.json missing beside NAME_seg.png: ADE_val_00000005" in refused(capsys, *words)
    shutil.rmtree(source / "images")
    assert "images/ADE/validation/**/*_seg.png" in refused(capsys, *words)


@pytest.mark.parametrize(
    ("names", "found", "expected"),
    [
        (["a", "b"], ["a", "b"], {"a": 0, "b": 1}),
        (["a"], ["A", " a", "a, b"], {"A": 0, " a": 0}),  # exactly there: nothing else is it
        (["a"], ["a, b", "a, c"], {}),
        (["a, b"], ["a", "b"], {"a": 0}),  # the main word decides
        (["a", "b"], ["a, b"], {"a, b": 0}),
        (["b"], ["a, b", "c"], {"a, b": 0}),
        (["a, b", "a, c"], ["a"], {}),
        (["a, b, c"], ["a, c"], {"a, c": 0}),
        (["a, b"], ["a, c"], {}),
        (["a"], [""], {}),
    ],
)
def test_names_with_some_of_the_synonyms(
    names: list[str], found: list[str], expected: dict[str, int]
) -> None:
    assert match_synonyms(names, found) == expected
