"""Finds the files of a distributed data set; errors say what was looked for and where."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from escnet_runtime.dataset import listed
from escnet_runtime.errors import InputError
from escnet_runtime.vocabulary import read_classes_file

from ..class_names import positions
from .plan import Pair

__all__ = [
    "ClassNames",
    "class_names",
    "files_of",
    "find_file",
    "find_folder",
    "numbered_names",
    "pair_up",
    "read_list",
    "require_source",
]

_NUMBERED = re.compile(r"\s*(\d{1,9})\s*:\s*(.+?)\s*")


def require_source(source: Path) -> None:
    """Raise InputError if ``source`` is not a folder."""
    if not source.is_dir():
        raise InputError(f"there is no data set at {source}: no such folder")


def files_of(folder: Path, pattern: str) -> Iterator[Path]:
    """Matching files without hidden ones: some systems leave "._NAME.jpg" beside NAME.jpg."""
    return (path for path in folder.glob(pattern) if not path.name.startswith("."))


def find_folder(candidates: Sequence[Path], what: str, *, holding: str) -> Path:
    """The first of ``candidates`` that is a folder with a file that matches ``holding``.

    Raises InputError that lists all of them.
    """
    for folder in candidates:
        if folder.is_dir() and next(files_of(folder, holding), None) is not None:
            return folder
    places = " or ".join(str(folder / holding) for folder in candidates)
    raise InputError(f"{what}: looked for {places}, and found none")


def find_file(candidates: Sequence[Path], what: str, *, hint: str = "") -> Path:
    """The first of ``candidates`` that is a file. Raises InputError that lists all of them."""
    for path in candidates:
        if path.is_file():
            return path
    places = " or ".join(map(str, candidates))
    raise InputError(f"{what}: looked for {places}, which is not there{hint}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassNames:
    """Names of the classes to write, and for each the index of the data set's class, from 0.

    ``origin`` tells people where the names are from, and ``warnings`` what is uncertain.
    """

    names: tuple[str, ...]
    classes: tuple[int, ...]
    origin: str
    warnings: tuple[str, ...] = ()


def class_names(
    count: int, classes_file: Path | None, own: Callable[[], tuple[str, Sequence[str]]]
) -> ClassNames:
    """The data set's own names, or the same number of names from a user's file.

    If the file has the data set's names in another order, the classes get that order. If it has
    other names, they are taken in the data set's order. If the data set's own names cannot be read,
    the two cases cannot be told apart, and a warning says so.

    Args:
        count: number of classes.
        classes_file: the user's file, or None.
        own: finds and reads the data set's own names; returns where they are from, and the names.

    Raises:
        VocabularyError: the file is no list of names.
        InputError: it has another number of names, or names of the data set at wrong places;
            without a file, what ``own`` raises.
    """
    in_order = tuple(range(count))
    if classes_file is None:
        own_file, names = own()
        return ClassNames(names=tuple(names), classes=in_order, origin=f"names of {own_file}")
    given = tuple(read_classes_file(classes_file))
    if len(given) != count:
        raise InputError(
            f"{classes_file} has {len(given)} names; expected {count}, in the data set's order"
        )
    origin = f"names of {classes_file.name}"
    try:
        own_file, names = own()
    except InputError:
        # The reason is left out: it contains paths, and warnings are published.
        warning = (
            f"the names of {classes_file.name} are taken in the data set's order, unchecked: the "
            "data set's own names, to compare them with, are not there or cannot be read"
        )
        return ClassNames(names=given, classes=in_order, origin=origin, warnings=(warning,))
    classes = positions(given, names, classes_file, own_file)
    if classes != in_order:
        origin += f", in its order, which is not that of {own_file}"
    return ClassNames(names=given, classes=classes, origin=origin)


def numbered_names(path: Path) -> dict[int, str]:
    """Names of a text file with lines ``NUMBER: NAME``.

    Raises InputError, with the line, if one is something else or a number comes twice.
    """
    names: dict[int, str] = {}
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        match = _NUMBERED.fullmatch(line)
        if match is None or int(match[1]) in names:
            raise InputError(
                f"{path}, line {number}: got {line!r:.60}; expected NUMBER: NAME, each number once"
            )
        names[int(match[1])] = match[2]
    return names


def read_list(path: Path) -> list[str]:
    """The names of images in a split's list, one a line; anything after a blank is ignored.

    Raises InputError if it is empty or lists one twice.
    """
    # Some lists give paths of images; their stem is the name.
    words = [line.split()[0] for line in _text(path).splitlines() if line.strip()]
    stems = [Path(word).stem for word in words]
    if not stems:
        raise InputError(f"{path} lists no image")
    again = (
        {stem for stem in stems if stems.count(stem) > 1} if len(set(stems)) < len(stems) else ()
    )
    if again:
        raise InputError(f"{path} lists images twice: {listed(sorted(again))}")
    return sorted(stems)


def pair_up(
    stems: Iterable[str],
    images: Path,
    labels: Path,
    *,
    image_suffix: str = ".jpg",
    label_suffix: str = ".png",
) -> tuple[Pair, ...]:
    """Image and labels of every name. Raises InputError that names what is missing."""
    pairs = [
        Pair(
            stem=stem,
            image=images / f"{stem}{image_suffix}",
            labels=labels / f"{stem}{label_suffix}",
        )
        for stem in stems
    ]
    for folder, suffix, what, lacking in (
        (labels, label_suffix, "label files", [p.stem for p in pairs if not p.labels.is_file()]),
        (images, image_suffix, "images", [p.stem for p in pairs if not p.image.is_file()]),
    ):
        if lacking:
            raise InputError(f"{what} missing, looked for {folder}/NAME{suffix}: {listed(lacking)}")
    return tuple(pairs)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
