"""``escnet-prepare`` on miniature trees in the layouts of the distributed data sets."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from escnet_bench.prepare import PREPARATIONS
from escnet_bench.prepare.layout import numbered_names
from escnet_bench.prepare.matlab import read_matrix
from escnet_bench.prepare.plan import lookup, remap
from escnet_bench.prepare_command import main
from escnet_runtime.dataset import Dataset
from escnet_runtime.errors import InputError
from escnet_runtime.world import dataset as shapes
from tests.bench.distributed import (
    ade_tree,
    coco_tree,
    context_tree,
    full_ade_tree,
    mat_file,
    prepare,
    prepared,
    refused,
    row,
    voc_tree,
    write_names,
    write_text,
)
from tests.bench.folders import save_labels

# --- The small world -----------------------------------------------------------------------------


def test_the_small_world_as_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "train"
    words = ("--split", "train", "--count", "2", "--size", "64", "--objects", "1", "3")
    code, document = prepare(capsys, "shapes", *words, "--output", output)
    assert code == 0
    assert (document["dataset"], document["images"], document["bits"]) == ("shapes:train", 2, 16)
    dataset = Dataset.open(output)
    scenes = shapes("shapes:train", length=2, size=64, objects=(1, 3))
    assert dataset.names == scenes.classes
    for sample, (image, labels) in zip(dataset, scenes, strict=True):
        np.testing.assert_array_equal(sample.image, image)
        np.testing.assert_array_equal(sample.labels, labels)
    marker = json.loads((output / "prepared.json").read_text(encoding="utf-8"))
    assert marker["dataset"] == "shapes:train"
    assert "2 scenes of 64 px with 1 to 3 objects" in marker["origin"]
    assert prepare(capsys, "shapes", "--count", "1", "--output", output)[0] == 0
    assert len(Dataset.open(output)) == 1  # its own folder is replaced


# --- COCO-Stuff ----------------------------------------------------------------------------------


def test_coco_stuff_has_171_classes_in_detectron2s_order(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    dataset = prepared(capsys, "coco-stuff", coco_tree(tmp_path / "coco"))
    assert len(dataset.names) == 171
    # Ids of things are counted past the eleven that were never used; stuff begins at 80.
    assert [dataset.names[index] for index in (0, 10, 11, 79, 80, 170)] == [
        "coco 1",
        "coco 11",
        "coco 13",
        "coco 90",
        "coco 92",
        "coco 182",
    ]
    labels = [sample.labels.tolist() for sample in dataset]
    assert labels == [[[0, 10, 11, 255]], [[255, 80, 170, 79]], [[255] * 4]]


def test_what_mmsegmentation_made_of_coco_stuff_is_left_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = coco_tree(tmp_path / "coco")
    maps = sorted((source / "annotations" / "val2017").iterdir())
    for path in maps:
        shutil.copy(path, path.with_name(f"{path.stem}_labelTrainIds.png"))
    assert len(prepared(capsys, "coco-stuff", source)) == 3
    shutil.rmtree(tmp_path / "prepared")
    for path in maps:
        path.unlink()
    assert "expected those as released, NAME.png" in refused(capsys, "coco-stuff", source)


@pytest.mark.parametrize(
    ("annotations", "images"), [("stuffthingmaps", "images"), (".", "images"), (".", ".")]
)
def test_coco_stuff_as_its_archives_unpack(
    annotations: str, images: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = coco_tree(tmp_path / "coco", annotations=annotations, images=images)
    assert len(prepared(capsys, "coco-stuff", source)) == 3


def test_coco_stuff_with_the_names_of_a_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = coco_tree(tmp_path / "coco")
    (source / "labels.txt").unlink()
    assert "labels.txt" in refused(capsys, "coco-stuff", source)
    names = write_names(tmp_path / "names.json", 171)
    dataset = prepared(capsys, "coco-stuff", source, "--classes-file", names)
    assert dataset.names[170] == "name 170"
    names = write_names(tmp_path / "names.json", 170)
    shutil.rmtree(dataset.root)
    message = refused(capsys, "coco-stuff", source, "--classes-file", names)
    assert "has 170 names; expected 171" in message


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no such folder"),
        (lambda root: shutil.rmtree(root / "annotations"), r"annotations/val2017/*.png"),
        (lambda root: shutil.rmtree(root / "images"), r"images/val2017/*.jpg"),
        (
            lambda root: (root / "images/val2017/000000000285.jpg").unlink(),
            "images/val2017/NAME.jpg: 000000000285",
        ),
        (
            lambda root: save_labels(root / "annotations/val2017/000000000632.png", row(200)),
            "000000000632.png has the values [200]",
        ),
        (
            lambda root: Image.new("RGB", (4, 1)).save(
                root / "annotations/val2017/000000000285.png"
            ),
            "000000000285.png has mode RGB",
        ),
        (
            lambda root: save_labels(root / "annotations/val2017/000000000285.png", row(0, 1)),
            "285.png has 2×1 pixels and its image ",
        ),
        (
            lambda root: (root / "images/val2017/000000000632.jpg").write_bytes(b""),
            "000000000632.jpg is empty; expected an image file",
        ),
        (
            lambda root: (root / "images/val2017/000000000632.jpg").write_bytes(b"<html>"),
            "000000000632.jpg is not an image that Pillow can read",
        ),
        (lambda root: write_text(root / "labels.txt", "1: a\nb\n"), "line 2: got 'b'"),
        (lambda root: write_text(root / "labels.txt", "1: a\n"), "no name for [2, 3, 4"),
    ],
)
def test_another_layout_is_told_what_was_looked_for(
    damage: Callable[[Path], object],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    source = coco_tree(tmp_path / "coco")
    damage(source)
    said = refused(capsys, "coco-stuff", source)
    assert message in said
    assert "coco" in said


@pytest.mark.parametrize(
    ("kind", "tree", "count"),
    [
        ("coco-stuff", coco_tree, 171),
        ("ade20k-150", ade_tree, 150),
        ("ade20k-847", full_ade_tree, 847),
        ("pascal-context-459", context_tree, 459),
        ("pascal-voc-20", voc_tree, 20),
    ],
)
def test_files_that_a_mac_leaves_beside_others_are_no_data(
    kind: str,
    tree: Callable[[Path], Path],
    count: int,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    source = tree(tmp_path / "source")
    words: list[str | Path] = []
    if kind == "ade20k-847":
        words = ["--classes-file", tmp_path / "names.json"]
    others = [f"class {index}" for index in range(count - 1)]
    write_text(tmp_path / "names.json", json.dumps(["wall", *others]))
    expected = prepared(capsys, kind, source, *words)
    for path in list(source.rglob("*.*")):
        if path.is_file():
            path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    again = prepared(capsys, kind, source, *words)
    assert again.names == expected.names
    assert len(again) == len(expected)
    marker = (again.root / "prepared.json").read_text(encoding="utf-8")
    assert "._" not in marker


def test_the_other_split_is_another_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = coco_tree(tmp_path / "coco")
    message = refused(capsys, "coco-stuff", source, "--split", "train")
    assert str(source / "annotations" / "train2017") in message


# --- ADE20K --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "stem"), [("val", "ADE_val_00000001"), ("train", "ADE_train_00000001")]
)
def test_ade20k_150(
    split: str, stem: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ade_tree(tmp_path / "data" / "ADEChallengeData2016")
    dataset = prepared(capsys, "ade20k-150", tmp_path / "data", "--split", split)
    assert dataset.names[0] == "ade 1, other"
    assert dataset.names[149] == "ade 150, other"
    (sample,) = dataset
    assert sample.name == stem
    assert sample.labels.tolist() == [[255, 0, 149]]


def test_a_number_of_any_length_is_an_input_error(tmp_path: Path) -> None:
    """Python makes no number of more than 4,300 digits."""
    write_text(tmp_path / "labels.txt", "9" * 5000 + ": cat\n")
    with pytest.raises(InputError, match=r"labels\.txt, line 1: .* expected NUMBER: NAME"):
        numbered_names(tmp_path / "labels.txt")


def test_ade20k_150_that_is_something_else(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = ade_tree(tmp_path / "ade")
    save_labels(source / "annotations/validation/ADE_val_00000001.png", row(151))
    assert "has the values [151]" in refused(capsys, "ade20k-150", source)
    write_text(source / "objectInfo150.txt", "Idx\tName\n1\twall\n")
    assert "the numbers 1 to 150" in refused(capsys, "ade20k-150", source)
    write_text(source / "objectInfo150.txt", "Idx\tName\n1\t" + "x" * 200_000 + "\n")
    assert "expected a table with tabs" in refused(capsys, "ade20k-150", source)
    (source / "objectInfo150.txt").unlink()
    assert "objectInfo150.txt, which is not there" in refused(capsys, "ade20k-150", source)
    shutil.rmtree(source / "annotations")
    message = refused(capsys, "ade20k-150", source)
    assert str(source / "annotations" / "validation" / "*.png") in message
    assert str(source / "ADEChallengeData2016") in message


# --- PASCAL VOC ----------------------------------------------------------------------------------


def test_voc_20_and_20b_differ_in_the_background(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = voc_tree(tmp_path / "data")
    dataset = prepared(capsys, "pascal-voc-20", source)
    assert dataset.names[0] == "athing"
    assert len(dataset.names) == 20
    (sample,) = dataset
    assert sample.name == "2007_000033"
    assert sample.labels.tolist() == [[255, 0, 19, 255]]
    dataset = prepared(capsys, "pascal-voc-20b", source / "VOCdevkit" / "VOC2012")
    assert dataset.names[19:] == ("tthing", "background")
    assert next(iter(dataset)).labels.tolist() == [[20, 0, 19, 255]]


def test_voc_is_trained_on_the_extended_images_where_they_are_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = voc_tree(tmp_path / "data")
    folder = source / "VOCdevkit" / "VOC2012"
    lists = folder / "ImageSets" / "Segmentation"
    words = ("pascal-voc-20", source, "--split", "train", "--output", tmp_path / "prepared")
    write_text(lists / "train.txt", "2007_000033\n")
    assert prepare(capsys, *words)[1]["images"] == 1
    write_text(lists / "trainaug.txt", "2007_000033\n2007_000039\n")
    document = prepare(capsys, *words)[1]
    assert document["images"] == 1
    assert document["warnings"][0].endswith("there is only trainaug.txt")
    save_labels(folder / "SegmentationClassAug" / "2007_000033.png", row(2, 2, 2, 2))
    document = prepare(capsys, *words)[1]
    assert document["images"] == 1
    assert document["warnings"][0].endswith("1 of 2 label maps are missing: 2007_000039")
    save_labels(folder / "SegmentationClassAug" / "2007_000039.png", row(2, 2, 2, 2))
    document = prepare(capsys, *words)[1]
    assert document["images"] == 2
    assert "trainaug.txt, SegmentationClassAug" in document["origin"]
    samples = list(Dataset.open(tmp_path / "prepared"))
    assert [sample.labels.tolist() for sample in samples] == [[[1] * 4]] * 2
    assert prepare(capsys, *words[:2], *words[4:])[1]["images"] == 1  # val is as released


def test_voc_that_is_something_else(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source = voc_tree(tmp_path / "data")
    folder = source / "VOCdevkit" / "VOC2012"
    (folder / "ImageSets" / "Main" / "athing_val.txt").unlink()
    assert "20 lists" in refused(capsys, "pascal-voc-20", source)
    names = write_names(tmp_path / "names.json", 20)
    words = ("pascal-voc-20", source, "--classes-file", names)
    (folder / "JPEGImages" / "2007_000033.jpg").unlink()
    assert "images missing" in refused(capsys, *words)
    (folder / "SegmentationClass" / "2007_000033.png").unlink()
    assert "SegmentationClass/NAME.png: 2007_000033" in refused(capsys, *words)
    write_text(folder / "ImageSets" / "Segmentation" / "val.txt", "a\nb\na\n")
    assert "lists images twice: a" in refused(capsys, *words)
    write_text(folder / "ImageSets" / "Segmentation" / "val.txt", "\n")
    assert "lists no image" in refused(capsys, *words)
    shutil.rmtree(folder / "ImageSets")
    assert "ImageSets/Segmentation/val.txt, which is not there" in refused(capsys, *words)
    shutil.rmtree(folder / "JPEGImages")
    assert "VOCdevkit/VOC2012/JPEGImages/*.jpg" in refused(capsys, *words)


# --- PASCAL-Context ------------------------------------------------------------------------------


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("stored", ["u1", "i2", "u2", "f8"])
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (5, 7)])
def test_matrices_of_matlab_are_read(
    order: str, stored: str, compressed: bool, shape: tuple[int, int], tmp_path: Path
) -> None:
    matrix = np.random.default_rng(0).integers(0, 256, shape)
    path = tmp_path / "a.mat"
    path.write_bytes(mat_file(matrix, stored=stored, compressed=compressed, order=order))
    assert np.array_equal(read_matrix(path, "LabelMap"), matrix)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a MATLAB file"),
        (b"\x89HDF".ljust(200), "not a MATLAB file"),
        (mat_file(row(1), name="other"), "no matrix of real numbers 'LabelMap'; found .'other'"),
        (mat_file(row(1))[:128], "found nothing"),
        (mat_file(row(*range(200)))[:-9], "damaged"),
        (mat_file(row(*range(200)), compressed=False)[:-9], "cut off"),
        (mat_file(row(1))[:124] + struct.pack("<H", 0x0200) + b"IM", "save it with -v7"),
        (mat_file(row(1))[:136] + b"not zlib" * 9, "damaged"),
    ],
)
def test_other_files_are_no_matrices(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_matrix(path, "LabelMap")


def test_pascal_context_459_and_59(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source = context_tree(tmp_path / "data")
    dataset = prepared(capsys, "pascal-context-459", source)
    assert dataset.names[2] == "table"
    assert len(dataset.names) == 459
    sample = next(iter(dataset))
    assert sample.labels.dtype == np.uint16
    assert sample.labels.tolist() == [[65_535, 2, 44, 457, 99, 458]]
    dataset = prepared(capsys, "pascal-context-59", source)
    assert dataset.names[:4] == ("diningtable", "bedcloth", "clothes", "thing100")
    assert [sample.labels.tolist() for sample in dataset] == 2 * [[[255, 0, 1, 2, 3, 255]]]


def test_the_data_sets_own_list_of_a_split_comes_first(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = context_tree(tmp_path / "data")
    own = source / "VOCdevkit" / "VOC2010" / "trainval" / "pascalcontext_val.txt"
    write_text(own, "JPEGImages/2008_000003.jpg GroundTruth/2008_000003.png\n")
    output = tmp_path / "prepared"
    code, document = prepare(capsys, "pascal-context-59", source, "--output", output)
    assert code == 0
    expected = "images of trainval/pascalcontext_val.txt, names of 59_labels.txt"
    assert document["origin"] == expected
    assert [sample.name for sample in Dataset.open(output)] == ["2008_000003"]


def test_pascal_context_that_is_something_else(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = context_tree(tmp_path / "data")
    folder = source / "VOCdevkit" / "VOC2010"
    words = ("pascal-context-59", source)
    for matrix, message in (
        (np.array([[460]]), "has the values [460]"),
        (np.array([[1.5]]), "not whole numbers"),
        (np.array([[-1]]), f"values beyond 0 to {2**16 - 2}: got -1 to -1"),
        (np.zeros((1, 2, 3)), "LabelMap is [1, 2, 3]"),
    ):
        stored = "f8" if matrix.dtype == np.float64 else "i2"
        (folder / "trainval" / "2008_000002.mat").write_bytes(mat_file(matrix, stored=stored))
        assert message in refused(capsys, *words)
    (folder / "trainval" / "2008_000002.mat").unlink()
    assert "trainval/NAME.mat: 2008_000002" in refused(capsys, *words)
    text = (folder / "59_labels.txt").read_text(encoding="utf-8")
    write_text(folder / "59_labels.txt", text.replace("thing100", "unheard of"))
    assert "are not in labels.txt: unheardof" in refused(capsys, *words)
    (folder / "59_labels.txt").unlink()
    assert "59_labels.txt, which is not there" in refused(capsys, *words)
    shutil.rmtree(folder / "trainval")
    assert "trainval/*.mat" in refused(capsys, *words)


# --- The folder that is written ------------------------------------------------------------------


def test_images_are_linked_or_copied(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source = coco_tree(tmp_path / "coco")
    original = source / "images" / "val2017" / "000000000139.jpg"
    for options, links in (((), 2), (("--copy",), 1)):
        dataset = prepared(capsys, "coco-stuff", source, *options)
        image = dataset.root / "images" / original.name
        assert image.samefile(original) == (links == 2)
        assert image.read_bytes() == original.read_bytes()


def test_images_that_cannot_be_linked_are_not_copied_in_silence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_disk(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_disk)
    message = refused(capsys, "coco-stuff", coco_tree(tmp_path / "coco"))
    assert "Invalid cross-device link" in message
    assert "use --copy" in message


def test_a_limit_takes_the_first_images(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    dataset = prepared(capsys, "coco-stuff", coco_tree(tmp_path / "coco"), "--limit", "2")
    assert [image.stem for image, _ in dataset.pairs] == ["000000000139", "000000000285"]
    marker = json.loads((dataset.root / "prepared.json").read_text(encoding="utf-8"))
    expected = "the first 2 of 3 images: label maps of val2017, names of labels.txt"
    assert marker["origin"] == expected
    dataset = prepared(capsys, "coco-stuff", tmp_path / "coco", "--limit", "3")
    marker = json.loads((dataset.root / "prepared.json").read_text(encoding="utf-8"))
    assert marker["origin"] == "label maps of val2017, names of labels.txt"


def test_only_what_was_prepared_is_replaced(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = coco_tree(tmp_path / "coco")
    words = ("coco-stuff", source, "--output", tmp_path / "mine")
    assert prepare(capsys, *words, "--limit", "1")[0] == 0
    assert prepare(capsys, *words)[0] == 0
    assert len(Dataset.open(tmp_path / "mine")) == 3
    (tmp_path / "mine" / "prepared.json").unlink()  # as a folder that somebody labelled
    code, document = prepare(capsys, *words)
    assert code == 2
    assert "neither empty nor a prepared dataset" in document["error"]["message"]
    assert len(Dataset.open(tmp_path / "mine")) == 3


def test_what_lies_beside_a_prepared_dataset_is_not_removed_with_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("coco-stuff", coco_tree(tmp_path / "coco"), "--output", tmp_path / "mine")
    assert prepare(capsys, *words)[0] == 0
    (tmp_path / "mine" / ".DS_Store").touch()
    assert prepare(capsys, *words)[0] == 0
    (tmp_path / "mine" / "counts").write_text("of hours")
    code, document = prepare(capsys, *words)
    assert code == 2
    assert "beside a prepared dataset it holds counts" in document["error"]["message"]
    assert (tmp_path / "mine" / "counts").read_text() == "of hours"


def test_people_are_told_what_is_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source, output = coco_tree(tmp_path / "coco"), tmp_path / "out"
    assert main(["coco-stuff", str(source), "--output", str(output)]) == 0
    out = capsys.readouterr().out
    assert "3 images, 171 classes, of which 6 occur" in out
    assert "names of labels.txt" in out
    marker = json.loads((output / "prepared.json").read_text(encoding="utf-8"))
    assert marker["dataset"] == "coco-stuff"
    assert str(tmp_path) not in json.dumps(marker)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "DATASET"),
        (["imagenet", ".", "--output", "x"], "invalid choice: 'imagenet'"),
        (["coco-stuff", "."], "--output"),
        (["coco-stuff", ".", "--output", "x", "--limit", "0"], "--limit is 0"),
        (["coco-stuff", ".", "--output", "x", "--shorter-side", "0"], "--shorter-side is 0"),
        (["coco-stuff", ".", "--output", "x", "--split", "test"], "invalid choice: 'test'"),
        (["coco-stuff", ".", "--output", "x", "--count", "2"], "unrecognized arguments: --count"),
        (["shapes", "--output", "x", "--split", "val"], "invalid choice: 'val'"),
        (["shapes", "--output", "x", "--split", "train", "--seed", "1"], "--seed goes with"),
        (["shapes", "--output", "x", "--seed", "-1"], "got data set 'shapes:heldout:-1'"),
        (["shapes", "--output", "x", "--count", "0"], "got length 0"),
        (["shapes", "--output", "x", "--size", "9"], "got size 9"),
        (["shapes", "--output", "x", "--objects", "3", "2"], "got 3 to 2 objects"),
    ],
)
def test_wrong_usage_exits_2_and_says_why(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, document = prepare(capsys, *words)
    assert code == 2
    assert message in document["error"]["message"]


def test_every_data_set_of_the_paper_is_there() -> None:
    assert sorted(PREPARATIONS) == [
        "ade20k-150",
        "ade20k-847",
        "coco-stuff",
        "pascal-context-459",
        "pascal-context-59",
        "pascal-voc-20",
        "pascal-voc-20b",
    ]


def test_values_that_are_not_defined_are_errors(tmp_path: Path) -> None:
    table = lookup({4: 0}, unlabelled=[9])
    assert remap(row(4, 9), table, tmp_path).tolist() == [[0, 65_535]]
    with pytest.raises(InputError, match=r"values \[3, 5\]"):
        remap(row(4, 5, 3), table, tmp_path)
