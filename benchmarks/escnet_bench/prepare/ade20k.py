"""ADE20K-150: ADEChallengeData2016, 150 classes.

Layout: ``ADEChallengeData2016/{images,annotations}/{training,validation}``, pixels 0 for "other",
which is not labelled, 1 to 150 for classes. Names: ``objectInfo150.txt`` beside them, a table with
tabs whose columns Idx and Name count, or ``--classes-file`` (its order: see ``class_names.py``).
"""

import csv
from functools import partial
from pathlib import Path
from typing import Final

from escnet_runtime.errors import InputError
from escnet_runtime.pictures import read_label_png

from .layout import class_names, files_of, find_file, find_folder, pair_up, require_source
from .plan import LabelMap, Plan, lookup, remap
from .releases import count_warnings, unlabelled_warnings

__all__ = ["PARTS", "plan_ade20k_150"]

_CLASSES: Final = 150
PARTS: Final = {"train": "training", "val": "validation"}


def plan_ade20k_150(source: Path, split: str, classes_file: Path | None) -> Plan:
    """The plan for an ADEChallengeData2016 folder; ``split`` is "train" or "val"."""
    require_source(source)
    part = PARTS[split]
    roots = [source, source / "ADEChallengeData2016"]
    labels = find_folder(
        [root / "annotations" / part for root in roots], "label maps of ADE20K", holding="*.png"
    )
    root = labels.parent.parent
    images = find_folder([root / "images" / part], "images of ADE20K", holding="*.jpg")
    names = class_names(_CLASSES, classes_file, partial(_own_names, root))
    values = {own + 1: index for index, own in enumerate(names.classes)}
    table = lookup(values, unlabelled=[0])

    def read(path: Path) -> LabelMap:
        return remap(read_label_png(path)[0], table, path)

    stems = sorted(path.stem for path in files_of(labels, "*.png"))
    return Plan(
        dataset="ade20k-150",
        split=split,
        names=names.names,
        pairs=pair_up(stems, images, labels),
        read=read,
        origin=f"label maps of {part}, {names.origin}",
        warnings=(
            *names.warnings,
            *count_warnings("ade20k-150", split, len(stems)),
            *unlabelled_warnings(images, stems),
        ),
    )


def _own_names(root: Path) -> tuple[str, tuple[str, ...]]:
    path = find_file(
        [root / "objectInfo150.txt"],
        "class names of ADE20K",
        hint="; or give the 150 names with --classes-file",
    )
    wrong = InputError(
        f"{path}: expected a table with tabs, a first line with the columns Idx and Name, and the "
        f"numbers 1 to {_CLASSES}; give the names with --classes-file instead"
    )
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = list(csv.DictReader(text.splitlines(), delimiter="\t"))
        names = {int(row["Idx"]): row["Name"].strip() for row in rows}
    except (OSError, KeyError, ValueError, AttributeError, TypeError, csv.Error) as error:
        raise wrong from error
    if sorted(names) != list(range(1, _CLASSES + 1)) or not all(names.values()):
        raise wrong
    return path.name, tuple(names[number] for number in range(1, _CLASSES + 1))
