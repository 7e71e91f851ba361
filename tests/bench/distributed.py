"""Miniature trees in the layouts of the distributed data sets, and ``escnet-prepare`` on them."""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from escnet_bench.prepare_command import main
from escnet_runtime.dataset import Dataset
from tests.bench.folders import save_image, save_labels

__all__ = [
    "ade_tree",
    "coco_tree",
    "context_tree",
    "element",
    "full_ade_tree",
    "mat_file",
    "prepare",
    "prepared",
    "refused",
    "row",
    "voc_tree",
    "write_names",
    "write_text",
]

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


def ade_tree(root: Path) -> Path:
    """ADEChallengeData2016 with one picture of each split."""
    for part, stem in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        save_image(root / "images" / part / f"{stem}.jpg", 1, 3)
        save_labels(root / "annotations" / part / f"{stem}.png", row(0, 1, 150))
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    lines += [f"{number}\t0.1\t9\t9\t1\tade {number}, other" for number in range(1, 151)]
    write_text(root / "objectInfo150.txt", "\n".join(lines) + "\n")
    return root


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
