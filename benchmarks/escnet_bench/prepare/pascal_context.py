"""PASCAL-Context: all 459 classes over PASCAL VOC 2010, or the 59 commonest.

Layout: ``VOCdevkit/VOC2010`` with ``JPEGImages`` and, from the data set's own archive,
``trainval/NAME.mat`` (a matrix LabelMap: 0 none, 1 to 459 classes) and ``labels.txt``, for 59 also
``59_labels.txt``, both "1: accordion", in ``trainval`` or beside it. The images of a split are
listed by the first that is there of ``pascalcontext_val.txt``,
``ImageSets/SegmentationContext/val.txt`` and ``ImageSets/Main/val.txt``.
"""

from pathlib import Path
from typing import Final

import numpy as np

from escnet_runtime.dataset import listed
from escnet_runtime.errors import InputError

from .layout import class_names, find_file, find_folder, numbered_names, pair_up, read_list
from .matlab import read_matrix
from .pascal_voc import voc_root
from .plan import UNLABELLED, LabelMap, Plan, lookup, remap

__all__ = ["plan_context_59", "plan_context_459"]

_ALL: Final = 459
_COMMON: Final = 59
_MATRIX: Final = "LabelMap"
#: Three classes have another name in 59_labels.txt than in labels.txt.
_OTHER_NAMES: Final = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}


def plan_context_59(source: Path, split: str, classes_file: Path | None) -> Plan:
    """PASCAL-Context-59: other classes are not labelled; ``split`` is "train" or "val"."""
    root = voc_root(source, "2010")
    labels = _labels(source, root)
    every = _numbered(source, root, labels, "labels.txt", _ALL)
    common = _numbered(source, root, labels, "59_labels.txt", _COMMON)
    numbers = {name: number for number, name in every.items()}
    own = [_squeezed(name) for _, name in sorted(common.items())]
    sought = [name if name in numbers else _OTHER_NAMES.get(name, name) for name in own]
    lacking = [name for name in sought if name not in numbers]
    if lacking:
        raise InputError(f"classes of 59_labels.txt are not in labels.txt: {listed(lacking)}")
    classes = {numbers[name]: index for index, name in enumerate(sought)}
    rest = dict.fromkeys(numbers.values(), UNLABELLED)
    names = class_names(classes_file, _COMMON) if classes_file else tuple(own)
    return _plan("pascal-context-59", source, root, labels, split, names, rest | classes)


def plan_context_459(source: Path, split: str, classes_file: Path | None) -> Plan:
    """PASCAL-Context-459; ``split`` is "train" or "val"."""
    root = voc_root(source, "2010")
    labels = _labels(source, root)
    if classes_file:
        names = class_names(classes_file, _ALL)
    else:
        every = _numbered(source, root, labels, "labels.txt", _ALL)
        names = tuple(every[number] for number in range(1, _ALL + 1))
    classes = {number: number - 1 for number in range(1, _ALL + 1)}
    return _plan("pascal-context-459", source, root, labels, split, names, classes)


def _plan(
    dataset: str,
    source: Path,
    root: Path,
    labels: Path,
    split: str,
    names: tuple[str, ...],
    classes: dict[int, int],
) -> Plan:
    own = f"pascalcontext_{split}.txt"
    sets = root / "ImageSets"
    list_file = find_file(
        [
            *(folder / own for folder in _homes(source, root, labels)),
            sets / "SegmentationContext" / f"{split}.txt",
            sets / "Main" / f"{split}.txt",
        ],
        "images of the split",
    )
    table = lookup(classes, unlabelled=[0])

    def read(path: Path) -> LabelMap:
        return remap(_label_map(path), table, path)

    stems = read_list(list_file)
    return Plan(
        dataset=dataset,
        split=split,
        names=names,
        pairs=pair_up(stems, root / "JPEGImages", labels, label_suffix=".mat"),
        read=read,
        origin=f"images of {list_file.parent.name}/{list_file.name}",
    )


def _labels(source: Path, root: Path) -> Path:
    places = [root / "trainval", source / "trainval"]
    return find_folder(places, "label files of PASCAL-Context", holding="*.mat")


def _homes(source: Path, root: Path, labels: Path) -> list[Path]:
    return list(dict.fromkeys([labels, root, source]))


def _numbered(source: Path, root: Path, labels: Path, name: str, count: int) -> dict[int, str]:
    path = find_file(
        [folder / name for folder in _homes(source, root, labels)],
        "class names of PASCAL-Context",
        hint="; it comes with the data set",
    )
    names = {number: _squeezed(text) for number, text in numbered_names(path).items()}
    if count == _ALL and sorted(names) != list(range(1, _ALL + 1)):
        raise InputError(f"{path} has {len(names)} names; expected the numbers 1 to {_ALL}")
    if len(set(names.values())) != count:
        raise InputError(f"{path} has {len(set(names.values()))} different names, expected {count}")
    return names


def _squeezed(name: str) -> str:
    """The two lists differ in blanks."""
    return name.replace(" ", "")


def _label_map(path: Path) -> LabelMap:
    matrix = read_matrix(path, _MATRIX)
    if matrix.ndim != 2 or matrix.size == 0:
        raise InputError(f"{path}: {_MATRIX} is {list(matrix.shape)}; expected [height, width]")
    if not (matrix.min() >= 0 and matrix.max() < UNLABELLED):
        raise InputError(f"{path}: {_MATRIX} has values beyond 0 to {UNLABELLED - 1}")
    numbers = matrix.astype(np.uint16)
    if not np.array_equal(numbers, matrix):
        raise InputError(f"{path}: {_MATRIX} has values that are not whole numbers")
    return numbers
