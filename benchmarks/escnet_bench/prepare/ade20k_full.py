"""ADE20K-847: the full ADE20K of 2021, ADE20K_2021_17_01.

Layout: ``images/ADE/{training,validation}/**/NAME.jpg`` with ``NAME_seg.png`` and ``NAME.json``
beside it. A pixel's class is ``R // 10 * 256 + G`` of the PNG, 0 for none; the JSON names the
objects of the image (``annotation.object[].name``, ``name_ndx``), which tells what the numbers
mean. ``index_ade20k.pkl`` is a pickle and is not read. Names: the 847 of the benchmark as a JSON or
text file, ``--classes-file``; all other classes become "not labelled". Names are compared without
case and blanks, and may lack synonyms (``match_synonyms``); a warning lists those that no object of
the split has.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from escnet_runtime.dataset import listed
from escnet_runtime.errors import ImageError, InputError
from escnet_runtime.vocabulary import read_classes_file

from ..class_names import match_synonyms, terms
from .ade20k import PARTS
from .layout import files_of, require_source
from .plan import UNLABELLED, LabelMap, Pair, Plan, lookup, remap
from .releases import count_warnings

__all__ = ["plan_ade20k_847"]

_log = logging.getLogger(__name__)

_CLASSES: Final = 847
_SUFFIX: Final = "_seg.png"
_PUBLISHED: Final = 512  # px of the shorter side, see shrink.py


def plan_ade20k_847(source: Path, split: str, classes_file: Path | None) -> Plan:
    """The plan for a folder of the full ADE20K; ``split`` is "train" or "val"."""
    require_source(source)
    if classes_file is None:
        raise InputError(
            "ADE20K-847 needs --classes-file: the 847 names of the benchmark, spelled as in the "
            "data set ('building, edifice'); the data set itself has over 3,000 and no such list"
        )
    names = _names(classes_file)
    pairs = _pairs(source, PARTS[split])
    _log.info("reading the names of the objects of %d images", len(pairs))
    objects = {pair.labels: _object_names(_beside(pair.labels)) for pair in pairs}
    found = {name for one in objects.values() for name in one.values()}
    indices = match_synonyms(names, sorted(found))
    present = set(indices.values())
    absent = [name for index, name in enumerate(names) if index not in present]
    unnamed = _Unnamed()

    def read(path: Path) -> LabelMap:
        return _read(path, objects[path], indices, unnamed)

    return Plan(
        dataset="ade20k-847",
        split=split,
        names=names,
        pairs=pairs,
        read=read,
        origin=f"images of {PARTS[split]}, names of {classes_file.name}",
        warnings=(
            *count_warnings("ade20k-847", split, len(pairs)),
            *_name_warnings(names, indices, absent),
        ),
        details={"names_not_found": absent},
        noticed=unnamed.warnings,
        published_side=_PUBLISHED,
    )


@dataclass(slots=True)
class _Unnamed:
    """Counts pixels whose class number is not in their image's .json, while labels are read."""

    pixels: int = 0
    images: list[str] = field(default_factory=list)

    def warnings(self) -> tuple[str, ...]:
        if not self.pixels:
            return ()
        return (
            f"{self.pixels:,} pixels of {len(self.images):,} images have a class number that their "
            f".json does not name, and are not labelled: {listed(self.images)}",
        )


def _names(classes_file: Path) -> tuple[str, ...]:
    names = tuple(read_classes_file(classes_file))
    if len(names) != _CLASSES:
        raise InputError(f"{classes_file} has {len(names)} names; expected {_CLASSES}")
    counts = Counter(frozenset(terms(name)) for name in names)
    again = sorted(name for name in names if counts[frozenset(terms(name))] > 1)
    if again:
        raise InputError(f"{classes_file} has names twice: {listed(again)}")
    return names


def _name_warnings(
    names: Sequence[str], indices: Mapping[str, int], absent: Sequence[str]
) -> Iterator[str]:
    loose = sorted(
        f"{names[index]!r} for {name!r}"
        for name, index in indices.items()
        if set(terms(names[index])) != set(terms(name))
    )
    if loose:
        yield f"{len(loose)} names are taken without all synonyms: {listed(loose)}"
    if absent:
        yield (
            f"{len(absent)} of {_CLASSES} names are those of no object in this split, and have no "
            f"pixel: {listed(map(repr, absent))} (all: names_not_found in prepared.json). Are they "
            "spelled as in the data set?"
        )


def _pairs(source: Path, part: str) -> tuple[Pair, ...]:
    roots = [source, source / "ADE20K_2021_17_01"]
    places = [root / "images" / "ADE" / part for root in roots]
    labels: list[Path] = []
    for place in places:
        labels = labels or sorted(files_of(place, f"**/*{_SUFFIX}"))
    if not labels:
        shown = " or ".join(f"{place}/**/*{_SUFFIX}" for place in places)
        raise InputError(f"label maps of the full ADE20K: looked for {shown}, and found none")
    pairs = []
    for path in labels:
        stem = path.name.removesuffix(_SUFFIX)
        pairs.append(Pair(stem=stem, image=path.with_name(f"{stem}.jpg"), labels=path))
    for suffix in (".jpg", ".json"):
        lacking = [p.stem for p in pairs if not p.image.with_suffix(suffix).is_file()]
        if lacking:
            raise InputError(f"NAME{suffix} missing beside NAME{_SUFFIX}: {listed(lacking)}")
    if len({pair.stem for pair in pairs}) < len(pairs):
        raise InputError(f"images of {part} have the same name in several folders")
    return tuple(pairs)


def _beside(path: Path) -> Path:
    """The .json file that belongs to a file of labels."""
    return path.with_name(path.name.removesuffix(_SUFFIX) + ".json")


def _read(
    path: Path, objects: Mapping[int, str], indices: Mapping[str, int], unnamed: _Unnamed
) -> LabelMap:
    numbers = _class_numbers(path)
    strange = sorted(set(np.unique(numbers).tolist()) - objects.keys() - {0})
    if strange:
        unnamed.pixels += int(np.isin(numbers, strange).sum())
        unnamed.images.append(path.name.removesuffix(_SUFFIX))
    classes = {number: indices.get(name, UNLABELLED) for number, name in objects.items()}
    return remap(numbers, lookup(classes, unlabelled=[0, *strange]), path)


def _class_numbers(path: Path) -> LabelMap:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            mode, pixels = image.mode, np.array(image)
    except Exception as error:  # decoders raise nearly anything for damaged files
        raise ImageError(f"cannot read the label map {path}: {error}") from error
    if mode not in ("RGB", "RGBA"):
        raise ImageError(f"{path} has mode {mode}; the full ADE20K has the class in red and green")
    wide = pixels.astype(np.uint16)
    numbers: LabelMap = wide[:, :, 0] // 10 * 256 + wide[:, :, 1]
    return numbers


def _object_names(path: Path) -> dict[int, str]:
    try:
        # Free text in some files is not UTF-8; the names of classes are ASCII.
        text = path.read_text(encoding="utf-8", errors="replace")
        document: Any = json.loads(text, strict=False)
        objects = document["annotation"]["object"]
        names = {int(one["name_ndx"]): str(one["name"]).strip() for one in objects}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"cannot read the objects of {path} ({type(error).__name__}: {error}); expected "
            "annotation.object[] with name and name_ndx"
        ) from error
    wrong = [number for number in names if not 0 <= number < UNLABELLED]
    if wrong:
        raise InputError(f"{path} has the class number {wrong[0]}; expected 0 to {UNLABELLED - 1}")
    return names
