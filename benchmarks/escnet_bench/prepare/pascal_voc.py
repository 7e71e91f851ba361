"""PASCAL VOC 2012 segmentation: 20 classes, with the background not labelled or as class 21.

Layout: ``VOCdevkit/VOC2012`` with ``JPEGImages``, ``SegmentationClass`` (palette PNG: 0 background,
1 to 20 classes, 255 void) and ``ImageSets/Segmentation/val.txt``. For training the often extended
set is taken if it is there: ``SegmentationClassAug`` and ``ImageSets/Segmentation/trainaug.txt``.
Names: those of the lists ``ImageSets/Main/NAME_val.txt``, whose alphabetical order is that of the
numbers, or ``--classes-file`` (its order: see ``class_names.py``).
"""

import re
from functools import partial
from pathlib import Path
from typing import Final

from escnet_runtime.dataset import listed
from escnet_runtime.errors import InputError
from escnet_runtime.pictures import read_label_png

from .layout import (
    class_names,
    files_of,
    find_file,
    find_folder,
    pair_up,
    read_list,
    require_source,
)
from .plan import UNLABELLED, LabelMap, Plan, lookup, remap
from .releases import count_warnings

__all__ = ["plan_voc_20", "plan_voc_20b", "voc_root"]

_CLASSES: Final = 20
_BACKGROUND: Final = "background"
_EXTENDED_LIST, _EXTENDED_LABELS = "trainaug.txt", "SegmentationClassAug"
_YEAR: Final = re.compile(r"VOC\d{4}")


def plan_voc_20(source: Path, split: str, classes_file: Path | None) -> Plan:
    """VOC-20: the background is not labelled; ``split`` is "train" or "val"."""
    return _plan(source, split, classes_file, background=False)


def plan_voc_20b(source: Path, split: str, classes_file: Path | None) -> Plan:
    """VOC-20b: the background is the last class, 20."""
    return _plan(source, split, classes_file, background=True)


def voc_root(source: Path, year: str) -> Path:
    """The folder ``VOC<year>`` at or below ``source``, known by its JPEGImages.

    Raises InputError if there is none, or if ``source`` is the folder of another year.
    """
    require_source(source)
    name = source.resolve().name
    if _YEAR.fullmatch(name) and name != f"VOC{year}":
        raise InputError(f"{source} is {name}; expected VOC{year}, or a folder that holds it")
    roots = [source / f"VOC{year}", source / "VOCdevkit" / f"VOC{year}", source]
    images = [root / "JPEGImages" for root in roots]
    return find_folder(images, f"images of PASCAL VOC {year}", holding="*.jpg").parent


def _plan(source: Path, split: str, classes_file: Path | None, *, background: bool) -> Plan:
    root = voc_root(source, "2012")
    extended, warnings = _extended(root) if split == "train" else (None, ())
    list_file, labels = extended or _released(root, split)
    names = class_names(_CLASSES, classes_file, partial(_own_names, root))
    table = lookup(
        {0: _CLASSES if background else UNLABELLED}
        | {own + 1: index for index, own in enumerate(names.classes)},
        unlabelled=[255],
    )

    def read(path: Path) -> LabelMap:
        return remap(read_label_png(path)[0], table, path)

    dataset = "pascal-voc-20b" if background else "pascal-voc-20"
    stems = read_list(list_file)
    return Plan(
        dataset=dataset,
        split=split,
        names=(*names.names, _BACKGROUND) if background else names.names,
        pairs=pair_up(stems, root / "JPEGImages", labels),
        read=read,
        origin=f"ImageSets/Segmentation/{list_file.name}, {labels.name}, {names.origin}",
        warnings=(*names.warnings, *warnings, *count_warnings(dataset, split, len(stems))),
    )


def _released(root: Path, split: str) -> tuple[Path, Path]:
    """The list of a split and the folder of its label maps."""
    lists = root / "ImageSets" / "Segmentation"
    list_file = find_file([lists / f"{split}.txt"], "images of the split")
    labels = find_folder(
        [root / "SegmentationClass"], "label maps of PASCAL VOC 2012", holding="*.png"
    )
    return list_file, labels


def _extended(root: Path) -> tuple[tuple[Path, Path] | None, tuple[str, ...]]:
    """List and folder of the extended training images, if all is there; a warning if some is."""
    list_file = root / "ImageSets" / "Segmentation" / _EXTENDED_LIST
    labels = root / _EXTENDED_LABELS
    there = [path.name for path in (list_file, labels) if path.exists()]
    if not there:
        return None, ()
    if len(there) == 2:
        stems = read_list(list_file)
        lacking = [stem for stem in stems if not (labels / f"{stem}.png").is_file()]
        if not lacking:
            return (list_file, labels), ()
        why = f"{len(lacking):,} of {len(stems):,} label maps are missing: {listed(lacking)}"
    else:
        why = f"of {_EXTENDED_LIST} and {_EXTENDED_LABELS} there is only {there[0]}"
    return None, (f"the extended training images are left out: {why}",)


def _own_names(root: Path) -> tuple[str, tuple[str, ...]]:
    folder = root / "ImageSets" / "Main"
    names = sorted(path.name.removesuffix("_val.txt") for path in files_of(folder, "*_val.txt"))
    if len(names) != _CLASSES:
        raise InputError(
            f"class names of PASCAL VOC: looked for {_CLASSES} lists {folder}/NAME_val.txt, found "
            f"{len(names)} ({listed(names)}); or give the names with --classes-file"
        )
    return "ImageSets/Main", tuple(names)
