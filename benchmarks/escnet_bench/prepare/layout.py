"""Finding the files of a distributed data set; errors say what was looked for and where."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from escnet_runtime.dataset import listed
from escnet_runtime.errors import InputError
from escnet_runtime.vocabulary import read_classes_file

from .plan import Pair

__all__ = [
    "class_names",
    "find_file",
    "find_folder",
    "numbered_names",
    "pair_up",
    "read_list",
    "require_source",
]

_NUMBERED = re.compile(r"\s*(\d+)\s*:\s*(.+?)\s*")


def require_source(source: Path) -> None:
    """Raise InputError if ``source`` is not a folder."""
    if not source.is_dir():
        raise InputError(f"there is no data set at {source}: no such folder")


def find_folder(candidates: Sequence[Path], what: str, *, holding: str) -> Path:
    """The first of ``candidates`` that is a folder with a file that matches ``holding``.

    Raises InputError that lists all of them.
    """
    for folder in candidates:
        if folder.is_dir() and next(folder.glob(holding), None) is not None:
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


def class_names(classes_file: Path, count: int) -> tuple[str, ...]:
    """The names of a user's file, which must be ``count``.

    Raises VocabularyError for a file that is no list of names, InputError for another number.
    """
    names = tuple(read_classes_file(classes_file))
    if len(names) != count:
        raise InputError(
            f"{classes_file} has {len(names)} names; expected {count}, in the data set's order"
        )
    return names


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
    """The names of images in a list of a split, one a line; what follows a blank is left out.

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
