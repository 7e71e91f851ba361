"""What is less, or other, than the release is said."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from escnet_bench.prepare import PREPARATIONS
from escnet_bench.prepare.releases import RELEASES, count_warnings
from escnet_bench.prepare_command import main
from tests.bench.distributed import ade_tree, coco_tree, context_tree, prepare, refused, voc_tree
from tests.bench.folders import save_image


@pytest.mark.parametrize(
    ("kind", "tree", "message"),
    [
        ("coco-stuff", coco_tree, "coco-stuff val has 3 images with labels here and 5,000"),
        ("ade20k-150", ade_tree, "ade20k-150 val has 1 images with labels here and 2,000"),
        ("pascal-voc-20b", voc_tree, "pascal-voc-20b val has 1 images with labels here and 1,449"),
        ("pascal-context-59", context_tree, "val has 2 images with labels here and 5,105"),
    ],
)
def test_an_incomplete_download_is_said(
    kind: str,
    tree: Callable[[Path], Path],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    source, output = tree(tmp_path / "data"), tmp_path / "prepared"
    assert main([kind, str(source), "--output", str(output), "--quiet"]) == 0
    said = capsys.readouterr().err
    assert f"warning: {kind}" in said
    assert message in said
    marker = json.loads((output / "prepared.json").read_text(encoding="utf-8"))
    assert any(message in warning for warning in marker["warnings"])
    assert str(tmp_path) not in json.dumps(marker)
    code, document = prepare(capsys, kind, source, "--output", output, "--limit", "1")
    assert code == 0
    assert document["warnings"] == marker["warnings"]  # of what is there, whatever is taken


def test_the_release_is_in_order() -> None:
    assert RELEASES.keys() == PREPARATIONS.keys()
    for kind, splits in RELEASES.items():
        assert splits.keys() == {"train", "val"}
        for split, counts in splits.items():
            assert not any(count_warnings(kind, split, count) for count in counts)
            assert "download complete?" in count_warnings(kind, split, counts[0] - 1)[0]
            assert "another release?" in count_warnings(kind, split, counts[-1] + 1)[0]
    (said,) = count_warnings("pascal-voc-20", "train", 1)
    assert "has 1 images with labels here and 1,464 or 10,582 as released" in said


@pytest.mark.parametrize(
    ("kind", "tree", "folder"),
    [("coco-stuff", coco_tree, "images/val2017"), ("ade20k-150", ade_tree, "images/validation")],
)
def test_images_without_labels_are_said(
    kind: str,
    tree: Callable[[Path], Path],
    folder: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    source = tree(tmp_path / "data")
    for name in ("another", "more"):
        save_image(source / folder / f"{name}.jpg", 2, 2)
    code, document = prepare(capsys, kind, source, "--output", tmp_path / "prepared")
    assert code == 0
    expected = "2 images have no label map and are left out: another, more"
    assert expected in document["warnings"]


@pytest.mark.parametrize("kind", ["pascal-voc-20", "pascal-context-59"])
def test_another_year_of_voc_is_not_taken_for_it(
    kind: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    own = voc_tree if kind == "pascal-voc-20" else context_tree
    folder = next((own(tmp_path / "data") / "VOCdevkit").iterdir())
    other = folder.rename(folder.with_name("VOC2007"))
    message = refused(capsys, kind, other)
    assert "VOC2007 is VOC2007; expected VOC20" in message
    plain = other.rename(other.with_name("pascal"))  # a name that says nothing
    assert prepare(capsys, kind, plain, "--output", tmp_path / "prepared")[0] == 0
