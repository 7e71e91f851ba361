"""COCO-Stuff 164k: 171 classes of pixel maps over COCO 2017.

Layout: ``images/val2017/*.jpg`` (or ``val2017/*.jpg``) and the maps of
stuffthingmaps_trainval2017.zip under ``annotations/``, ``stuffthingmaps/`` or beside the images,
``val2017/*.png``. Pixels hold the COCO-Stuff id less one (0 to 181), 255 where nothing is labelled.
``NAME_labelTrainIds.png`` beside them were made from these by mmsegmentation, and are ignored.
Names: ``labels.txt`` of COCO-Stuff ("1: person"), in the source folder, or ``--classes-file`` (its
order: see ``class_names.py``).
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Final

from escnet_runtime.errors import InputError
from escnet_runtime.pictures import read_label_png

from .layout import (
    class_names,
    files_of,
    find_file,
    find_folder,
    numbered_names,
    pair_up,
    require_source,
)
from .plan import LabelMap, Plan, lookup, remap
from .releases import count_warnings, unlabelled_warnings

__all__ = ["plan_coco_stuff"]

_IDS: Final = 182
_CONVERTED: Final = "_labelTrainIds"  # suffix of the names of mmsegmentation's maps
#: Of the 91 ids of things, eleven were never annotated; 80 things and 91 kinds of stuff remain.
_UNUSED: Final = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91})
_USED: Final = tuple(number for number in range(1, _IDS + 1) if number not in _UNUSED)


def plan_coco_stuff(source: Path, split: str, classes_file: Path | None) -> Plan:
    """The plan for a COCO-Stuff folder; ``split`` is "train" or "val"."""
    require_source(source)
    part = f"{split}2017"
    tops = [source / "annotations", source / "stuffthingmaps", source]
    labels = find_folder([top / part for top in tops], "label maps of COCO-Stuff", holding="*.png")
    images = find_folder(
        [source / "images" / part, source / part], "images of COCO", holding="*.jpg"
    )
    homes = (source, labels.parent)
    names = class_names(len(_USED), classes_file, partial(_own_names, homes))
    table = lookup(
        {_USED[own] - 1: index for index, own in enumerate(names.classes)},
        unlabelled=[255, *(number - 1 for number in _UNUSED)],
    )

    def read(path: Path) -> LabelMap:
        return remap(read_label_png(path)[0], table, path)

    every = [path.stem for path in files_of(labels, "*.png")]
    stems = sorted(stem for stem in every if not stem.endswith(_CONVERTED))
    if not stems:
        raise InputError(
            f"{labels} has no label maps but NAME{_CONVERTED}.png, which mmsegmentation's "
            "converter wrote; expected those as released, NAME.png"
        )
    return Plan(
        dataset="coco-stuff",
        split=split,
        names=names.names,
        pairs=pair_up(stems, images, labels),
        read=read,
        origin=f"label maps of {part}, {names.origin}",
        warnings=(
            *names.warnings,
            *count_warnings("coco-stuff", split, len(stems)),
            *unlabelled_warnings(images, stems),
        ),
    )


def _own_names(homes: Iterable[Path]) -> tuple[str, tuple[str, ...]]:
    path = find_file(
        [home / "labels.txt" for home in homes],
        "class names of COCO-Stuff",
        hint="; it comes with COCO-Stuff, or give the 171 names with --classes-file",
    )
    names = numbered_names(path)
    lacking = [number for number in _USED if number not in names]
    if lacking:
        raise InputError(
            f"{path} has no name for {lacking[:10]}; expected lines NUMBER: NAME for 1 to {_IDS}"
        )
    return path.name, tuple(names[number] for number in _USED)
