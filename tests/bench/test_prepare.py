"""``escnet-prepare`` on miniature trees in the layouts of the distributed data sets."""

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from escnet_bench.prepare import PREPARATIONS
from escnet_bench.prepare.matlab import read_matrix
from escnet_bench.prepare.plan import lookup, remap
from escnet_bench.prepare_command import main
from escnet_runtime.dataset import Dataset
from escnet_runtime.errors import InputError
from escnet_runtime.world import dataset as shapes
from tests.bench.folders import save_image, save_labels

_Bytes = NDArray[np.uint8]


def prepare(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, Any]:
    """Exit code and the one JSON object on standard output."""
    code = main([*map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def prepared(
    capsys: pytest.CaptureFixture[str], kind: str, source: Path, *words: str | Path
) -> Dataset:
    """The dataset that a successful run has written."""
    output = source.parent / "prepared"
    code, document = prepare(capsys, kind, source, "--output", output, *words)
    assert code == 0, document
    return Dataset.open(output)


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """The message of a run that fails; it must leave nothing behind."""
    output = Path(words[1]).parent / "prepared"
    code, document = prepare(capsys, *words, "--output", output)
    assert code == 2
    assert not output.exists()
    assert not list(output.parent.glob(".prepared*"))
    return str(document["error"]["message"])


def write_names(path: Path, count: int) -> Path:
    """A JSON list of ``count`` names."""
    path.write_text(json.dumps([f"name {index}" for index in range(count)]), encoding="utf-8")
    return path


def row(*values: int) -> _Bytes:
    """A label map of one row."""
    return np.array([values], np.uint8)


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


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


def coco_tree(root: Path, *, annotations: str = "annotations", images: str = "images") -> Path:
    """Three maps of COCO-Stuff with the first, the last and an unused id."""
    for stem, labels in (
        ("000000000139", row(0, 10, 12, 255)),
        ("000000000285", row(90, 91, 181, 89)),
        ("000000000632", row(11, 255, 255, 255)),
    ):
        save_image(root / images / "val2017" / f"{stem}.jpg", 1, 4)
        save_labels(root / annotations / "val2017" / f"{stem}.png", labels)
    names = ["0: unlabeled", *[f"{number}: coco {number}" for number in range(1, 183)]]
    write_text(root / "labels.txt", "\n".join(names) + "\n")
    return root


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


def test_the_other_split_is_another_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = coco_tree(tmp_path / "coco")
    message = refused(capsys, "coco-stuff", source, "--split", "train")
    assert str(source / "annotations" / "train2017") in message


# --- ADE20K --------------------------------------------------------------------------------------


def ade_tree(root: Path) -> Path:
    """ADEChallengeData2016 with one picture of each split."""
    for part, stem in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        save_image(root / "images" / part / f"{stem}.jpg", 1, 3)
        save_labels(root / "annotations" / part / f"{stem}.png", row(0, 1, 150))
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    lines += [f"{number}\t0.1\t9\t9\t1\tade {number}, other" for number in range(1, 151)]
    write_text(root / "objectInfo150.txt", "\n".join(lines) + "\n")
    return root


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


def test_ade20k_150_that_is_something_else(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = ade_tree(tmp_path / "ade")
    save_labels(source / "annotations/validation/ADE_val_00000001.png", row(151))
    assert "has the values [151]" in refused(capsys, "ade20k-150", source)
    write_text(source / "objectInfo150.txt", "Idx\tName\n1\twall\n")
    assert "the numbers 1 to 150" in refused(capsys, "ade20k-150", source)
    (source / "objectInfo150.txt").unlink()
    assert "objectInfo150.txt, which is not there" in refused(capsys, "ade20k-150", source)
    shutil.rmtree(source / "annotations")
    message = refused(capsys, "ade20k-150", source)
    assert str(source / "annotations" / "validation" / "*.png") in message
    assert str(source / "ADEChallengeData2016") in message


def full_ade_tree(root: Path, *, objects: dict[int, str] | None = None) -> Path:
    """ADE20K_2021_17_01 with one picture: classes 2978 (wall), 312 (building) and 7 (rare)."""
    folder = root / "images" / "ADE" / "validation" / "home" / "kitchen"
    save_image(folder / "ADE_val_00000005.jpg", 1, 4)
    numbers = np.array([2978, 312, 7, 0])
    pixels = np.zeros((1, 4, 3), np.uint8)
    pixels[0, :, 0], pixels[0, :, 1] = numbers // 256 * 10, numbers % 256
    pixels[0, :, 2] = [1, 2, 3, 4]  # instances
    Image.fromarray(pixels).save(folder / "ADE_val_00000005_seg.png")
    (folder / "ADE_val_00000005").mkdir(exist_ok=True)
    Image.new("L", (4, 1)).save(folder / "ADE_val_00000005" / "instance_000_ADE_val_00000005.png")
    named = objects or {2978: "wall", 312: "building, edifice", 7: "rare thing"}
    document = {
        "annotation": {
            "filename": "ADE_val_00000005.jpg",
            "object": [
                {"id": index, "name": name, "name_ndx": number, "parts": {"part_level": 0}}
                for index, (number, name) in enumerate(named.items())
            ],
        }
    }
    path = folder / "ADE_val_00000005.json"
    path.write_bytes(json.dumps(document).encode() + b" ")
    (root / "index_ade20k.pkl").write_bytes(b"a pickle that must not be read")
    return root


def test_ade20k_847_reads_the_names_of_each_image(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = full_ade_tree(tmp_path / "ADE20K_2021_17_01")
    names = tmp_path / "ade847.json"
    listed = [*[f"class {index}" for index in range(300)], "building, edifice", "wall"]
    names.write_text(json.dumps(listed), encoding="utf-8")
    dataset = prepared(capsys, "ade20k-847", source, "--classes-file", names)
    (sample,) = dataset
    assert sample.labels.dtype == np.uint16
    assert sample.labels.tolist() == [[301, 300, 65_535, 65_535]]
    assert sample.name == "ADE_val_00000005"


def test_ade20k_847_that_is_something_else(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = full_ade_tree(tmp_path / "ade", objects={2978: "wall", 313: "building, edifice"})
    names = tmp_path / "names.json"
    names.write_text('["wall", "building, edifice"]', encoding="utf-8")
    words = ("ade20k-847", source, "--classes-file", names)
    assert "class numbers [7, 312], which its .json does not name" in refused(capsys, *words)
    assert "needs --classes-file" in refused(capsys, "ade20k-847", source)
    names.write_text('["wall", "wall"]', encoding="utf-8")
    assert "has names twice: wall" in refused(capsys, *words)
    full_ade_tree(source)
    names.write_text('["of another data set"]', encoding="utf-8")
    assert "none of the 1 label maps has a labelled pixel" in refused(capsys, *words)
    json_file = next(source.rglob("*.json"))
    json_file.write_text('{"annotation": {}}', encoding="utf-8")
    assert "annotation.object[]" in refused(capsys, *words)
    json_file.unlink()
    assert "NAME.json missing beside NAME_seg.png: ADE_val_00000005" in refused(capsys, *words)
    shutil.rmtree(source / "images")
    assert "images/ADE/validation/**/*_seg.png" in refused(capsys, *words)


# --- PASCAL VOC ----------------------------------------------------------------------------------


def voc_tree(root: Path) -> Path:
    """VOCdevkit/VOC2012 with two pictures, of which the split "val" has one."""
    folder = root / "VOCdevkit" / "VOC2012"
    for stem in ("2007_000033", "2007_000039"):
        save_image(folder / "JPEGImages" / f"{stem}.jpg", 1, 4)
        palette = Image.fromarray(row(0, 1, 20, 255))
        palette.putpalette(list(range(256)) * 3)
        (folder / "SegmentationClass").mkdir(exist_ok=True)
        palette.save(folder / "SegmentationClass" / f"{stem}.png")
    write_text(folder / "ImageSets" / "Segmentation" / "val.txt", "2007_000033\n")
    for letter in "tsrqponmlkjihgfedcba":
        write_text(folder / "ImageSets" / "Main" / f"{letter}thing_val.txt", "2007_000033 -1\n")
    write_text(folder / "ImageSets" / "Main" / "val.txt", "2007_000033\n")
    return root


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


def element(kind: int, data: bytes, order: str = "<") -> bytes:
    """An element of a MATLAB file, padded; small ones in their tag."""
    if 0 < len(data) <= 4:
        return struct.pack(f"{order}I", len(data) << 16 | kind) + data.ljust(4, b"\0")
    return struct.pack(f"{order}II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def mat_file(
    matrix: NDArray[Any],
    *,
    name: str = "LabelMap",
    stored: str = "u2",
    compressed: bool = True,
    order: str = "<",
) -> bytes:
    """A MATLAB file of format 5 with one uint16 matrix, whose values are stored as ``stored``."""
    kinds = {"u1": 2, "i2": 3, "u2": 4, "f8": 9}
    body = element(6, struct.pack(f"{order}II", 11, 0), order)
    body += element(5, struct.pack(f"{order}{matrix.ndim}i", *matrix.shape), order)
    body += element(1, name.encode(), order)
    body += element(kinds[stored], matrix.astype(f"{order}{stored}").tobytes(order="F"), order)
    whole = element(14, body, order)
    if compressed:
        packed = zlib.compress(whole)
        whole = struct.pack(f"{order}II", 15, len(packed)) + packed
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(f"{order}H", 0x0100)
    return header + (b"IM" if order == "<" else b"MI") + whole


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


def context_tree(root: Path) -> Path:
    """VOC2010 with PASCAL-Context as its archive unpacks; three classes have two spellings."""
    folder = root / "VOCdevkit" / "VOC2010"
    names = [f"thing{number}" for number in range(1, 460)]
    names[2], names[44], names[457] = "table", "bedclothes", "cloth"
    lines = [f"{number}: {name}" for number, name in enumerate(names, start=1)]
    write_text(folder / "trainval" / "labels.txt", "\n".join(lines) + "\n")
    common = ["diningtable", "bedcloth", "clothes", *[f"thing{n}" for n in range(100, 156)]]
    lines = [f"{number}: {name}" for number, name in enumerate(common, start=1)]
    write_text(folder / "59_labels.txt", "\n".join(lines) + "\n")
    for stem in ("2008_000002", "2008_000003"):
        save_image(folder / "JPEGImages" / f"{stem}.jpg", 1, 6)
        matrix = np.array([[0, 3, 45, 458, 100, 459]])
        (folder / "trainval" / f"{stem}.mat").write_bytes(mat_file(matrix))
    write_text(folder / "ImageSets" / "Main" / "val.txt", "2008_000002\n2008_000003\n")
    return root


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
    assert document["origin"] == "images of trainval/pascalcontext_val.txt"
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
        (np.array([[-1]]), "values beyond 0"),
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
