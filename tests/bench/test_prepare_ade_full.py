"""ADE20K-847: the names of each image's objects, and those that a file gives them."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from escnet_bench.class_names import match_synonyms
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
