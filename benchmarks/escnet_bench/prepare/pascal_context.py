"""PASCAL-Context: all 459 classes over PASCAL VOC 2010, or the 59 commonest.

Layout: ``VOCdevkit/VOC2010`` with ``JPEGImages`` and, from the data set's own archive,
``trainval/NAME.mat`` (a matrix LabelMap: 0 none, 1 to 459 classes) and ``labels.txt``, for 59 also
``59_labels.txt``, both "1: accordion", in ``trainval`` or beside it. With ``--classes-file``, 59
names that are those of ``labels.txt`` need no ``59_labels.txt`` and give the order. The images of a
split are listed by the first that is there of ``pascalcontext_val.txt``,
``ImageSets/SegmentationContext/val.txt`` and ``ImageSets/Main/val.txt``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from escnet_runtime.dataset import listed
from escnet_runtime.errors import InputError
from escnet_runtime.vocabulary import read_classes_file

from ..class_names import match_names
from .layout import (
    ClassNames,
    class_names,
    find_file,
    find_folder,
    numbered_names,
    pair_up,
    read_list,
)
from .matlab import read_matrix
from .pascal_voc import voc_root
from .plan import UNLABELLED, LabelMap, Plan, lookup, remap
from .releases import count_warnings

__all__ = ["plan_context_59", "plan_context_459"]

_ALL: Final = 459
_COMMON: Final = 59
_MATRIX: Final = "LabelMap"
_COMMON_FILE: Final = "59_labels.txt"
#: Three classes have different names in 59_labels.txt and labels.txt.
_OTHER_NAMES: Final = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}


def plan_context_59(source: Path, split: str, classes_file: Path | None) -> Plan:
    """PASCAL-Context-59: other classes are not labelled; ``split`` is "train" or "val"."""
    root = voc_root(source, "2010")
    labels = _labels(source, root)
    homes = _homes(source, root, labels)
    every = _numbered(homes, "labels.txt", _ALL)
    common = partial(_common, homes, every)
    names = None if classes_file is None else _matched(classes_file, every, common)
    if names is None:
        names = class_names(_COMMON, classes_file, lambda: (_COMMON_FILE, list(common())))
        numbers = tuple(common().values())
        names = replace(names, classes=tuple(numbers[own] - 1 for own in names.classes))
    return _plan("pascal-context-59", homes, root, labels, split, names)


def plan_context_459(source: Path, split: str, classes_file: Path | None) -> Plan:
    """PASCAL-Context-459; ``split`` is "train" or "val"."""
    root = voc_root(source, "2010")
    labels = _labels(source, root)
    homes = _homes(source, root, labels)

    def own() -> tuple[str, list[str]]:
        every = _numbered(homes, "labels.txt", _ALL)
        return "labels.txt", [every[number] for number in range(1, _ALL + 1)]

    names = class_names(_ALL, classes_file, own)
    return _plan("pascal-context-459", homes, root, labels, split, names)


def _common(homes: Sequence[Path], every: Mapping[int, str]) -> dict[str, int]:
    """The 59 names of ``59_labels.txt`` in its order, each with its number in ``labels.txt``."""
    numbers = {name: number for number, name in every.items()}
    own = [name for _, name in sorted(_numbered(homes, _COMMON_FILE, _COMMON).items())]
    sought = [name if name in numbers else _OTHER_NAMES.get(name, name) for name in own]
    lacking = [name for name in sought if name not in numbers]
    if lacking:
        raise InputError(f"classes of {_COMMON_FILE} are not in labels.txt: {listed(lacking)}")
    return {name: numbers[other] for name, other in zip(own, sought, strict=True)}


def _matched(
    classes_file: Path, every: Mapping[int, str], common: Callable[[], dict[str, int]]
) -> ClassNames | None:
    """The classes of ``labels.txt`` that a file's names stand for, in the file's order.

    None if some names are other words, which only the order of ``59_labels.txt`` can identify.
    """
    given = tuple(read_classes_file(classes_file))
    if len(given) != _COMMON:
        raise InputError(f"{classes_file} has {len(given)} names; expected {_COMMON}")
    own = [every[number] for number in range(1, _ALL + 1)]
    places = match_names(given, own, _OTHER_NAMES)
    classes = tuple(place for place in places if place is not None)
    lost = [name for name, place in zip(given, places, strict=True) if place is None]
    try:
        numbers = set(common().values())
    except InputError as error:
        if lost:
            raise InputError(
                f"names of {classes_file} are not clearly one of labels.txt: {listed(lost)}. Use "
                f"the names of labels.txt, or put {_COMMON_FILE}, whose order then counts, beside "
                f"it ({error})"
            ) from error
        numbers = {place + 1 for place in classes}
    if lost:
        return None
    strange = [name for name, place in zip(given, classes, strict=True) if place + 1 not in numbers]
    if strange:
        raise InputError(
            f"names of {classes_file} are of other classes than the 59 of {_COMMON_FILE}: "
            f"{listed(strange)}"
        )
    origin = f"names of {classes_file.name}, found in labels.txt"
    return ClassNames(names=given, classes=classes, origin=origin)


def _plan(
    dataset: str,
    homes: Sequence[Path],
    root: Path,
    labels: Path,
    split: str,
    names: ClassNames,
) -> Plan:
    own = f"pascalcontext_{split}.txt"
    sets = root / "ImageSets"
    list_file = find_file(
        [
            *(folder / own for folder in homes),
            sets / "SegmentationContext" / f"{split}.txt",
            sets / "Main" / f"{split}.txt",
        ],
        "images of the split",
    )
    table = lookup(
        {own + 1: index for index, own in enumerate(names.classes)}, unlabelled=range(_ALL + 1)
    )

    def read(path: Path) -> LabelMap:
        return remap(_label_map(path), table, path)

    stems = read_list(list_file)
    return Plan(
        dataset=dataset,
        split=split,
        names=names.names,
        pairs=pair_up(stems, root / "JPEGImages", labels, label_suffix=".mat"),
        read=read,
        origin=f"images of {list_file.parent.name}/{list_file.name}, {names.origin}",
        warnings=(*names.warnings, *count_warnings(dataset, split, len(stems))),
    )


def _labels(source: Path, root: Path) -> Path:
    places = [root / "trainval", source / "trainval"]
    return find_folder(places, "label files of PASCAL-Context", holding="*.mat")


def _homes(source: Path, root: Path, labels: Path) -> list[Path]:
    return list(dict.fromkeys([labels, root, source]))


def _numbered(homes: Sequence[Path], name: str, count: int) -> dict[int, str]:
    path = find_file(
        [folder / name for folder in homes],
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
    """A name without blanks, in which the two lists differ."""
    return name.replace(" ", "")


def _label_map(path: Path) -> LabelMap:
    matrix = read_matrix(path, _MATRIX)
    if matrix.ndim != 2 or matrix.size == 0:
        raise InputError(f"{path}: {_MATRIX} is {list(matrix.shape)}; expected [height, width]")
    if not (matrix.min() >= 0 and matrix.max() < UNLABELLED):
        raise InputError(
            f"{path}: {_MATRIX} has values beyond 0 to {UNLABELLED - 1}: got {matrix.min():g} to "
            f"{matrix.max():g}"
        )
    numbers = matrix.astype(np.uint16)
    if not np.array_equal(numbers, matrix):
        raise InputError(f"{path}: {_MATRIX} has values that are not whole numbers")
    return numbers
