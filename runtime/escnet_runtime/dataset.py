"""A folder of images and label maps.

::

    images/NAME.jpg     any image that Pillow reads; an EXIF orientation is applied
    labels/NAME.png     8 or 16 bits a pixel, index of the class; 255 resp. 65535 is "not labelled"
                        (in 1, 2 and 4 bits every value is a class)
    classes.json        list of names; synonyms separated by ", "
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from .confusion import Labels, ignore_index
from .errors import InputError
from .images import IMAGE_SUFFIXES, ImageArray, load_oriented
from .pictures import read_label_png
from .vocabulary import find_duplicates, read_classes_file

__all__ = [
    "CLASSES",
    "IMAGES",
    "LABELS",
    "Dataset",
    "LabelledImages",
    "Sample",
    "listed",
    "require_distinct",
]

CLASSES: Final = "classes.json"
_LABEL_SUFFIXES: Final = frozenset({".png"})
IMAGES: Final = "images"
LABELS: Final = "labels"
_LISTED: Final = 10
_ORIENTATIONS: Final = {
    2: "mirrored",
    3: "turned by 180 degrees",
    4: "mirrored top to bottom",
    5: "mirrored along its diagonal",
    6: "turned by 90 degrees clockwise",
    7: "mirrored along its other diagonal",
    8: "turned by 90 degrees anticlockwise",
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sample:
    """An image, uint8 [H, W, 3], and its labels, uint8 or uint16 [H, W]."""

    name: str
    image: ImageArray
    labels: Labels


class LabelledImages(Protocol):
    """What can be evaluated: names of classes, and images with labels, read one at a time."""

    @property
    def names(self) -> tuple[str, ...]:
        """Classes; labels are indices into them."""

    @property
    def groups(self) -> Mapping[str, tuple[int, ...]]:
        """Classes that get figures of their own beside those of all: name → indices."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sample]: ...

    def __getitem__(self, index: int) -> Sample: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """A dataset folder that was looked over; its files are read while iterating.

    ``pairs`` are the paths (image, labels), in the order of their names.
    """

    root: Path
    names: tuple[str, ...]
    pairs: tuple[tuple[Path, Path], ...]

    @classmethod
    def open(cls, root: Path) -> "Dataset":
        """Look a folder over, without reading an image.

        Raises:
            InputError: something is missing, images and labels do not fit together, or two classes
                have one name.
            VocabularyError: ``classes.json`` is not a list of names.
        """
        if not root.is_dir():
            raise InputError(f"there is no dataset at {root}: no such folder")
        for name, there in (
            (f"{IMAGES}/", (root / IMAGES).is_dir()),
            (f"{LABELS}/", (root / LABELS).is_dir()),
            (CLASSES, (root / CLASSES).is_file()),
        ):
            if not there:
                raise InputError(
                    f"{root} is no dataset folder: looked for {root / name}, which is not there; a "
                    f"dataset has {IMAGES}/*, {LABELS}/*.png and {CLASSES}"
                )
        names = tuple(read_classes_file(root / CLASSES))
        require_distinct(names, str(root / CLASSES))
        return cls(root=root, names=names, pairs=tuple(_pairs(root)))

    @property
    def groups(self) -> Mapping[str, tuple[int, ...]]:
        """None: a folder does not tell its classes apart."""
        return {}

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Sample]:
        """Read the images and labels in order.

        Raises:
            ImageError: a file cannot be read, or labels are in another format.
            InputError: a label is no class, an image and its labels differ in size, or an EXIF
                orientation leaves open which pixels the labels are of.
        """
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        """Read one image and its labels; raises as iterating does, and IndexError."""
        return self._read(*self.pairs[index])

    def _read(self, image_path: Path, label_path: Path) -> Sample:
        image, orientation = load_oriented(image_path)
        labels, _ = read_label_png(label_path)
        labels = _aligned(labels, image, orientation, image_path, label_path)
        known = labels[labels != ignore_index(labels)]
        if known.size and known.max() >= len(self.names):
            raise InputError(
                f"{label_path} has the label {known.max()}; expected 0 to {len(self.names) - 1}, "
                f"the {len(self.names)} classes of {self.root / CLASSES}, or "
                f"{ignore_index(labels)} for pixels that are not labelled"
            )
        return Sample(name=image_path.stem, image=image, labels=labels)


def require_distinct(names: Sequence[str], where: str) -> None:
    """Refuse classes that a model cannot tell apart, as their names are the same to it.

    The second would never be predicted, and its ground truth would count as missed.

    Args:
        names: of classes.
        where: they come from, for the message.

    Raises:
        InputError: which they are, with their indices.
        VocabularyError: one is no name.
    """
    again = find_duplicates(names)
    if again:
        pairs = (f"{names[one]!r} ({one}) and {names[two]!r} ({two})" for two, one in again.items())
        raise InputError(
            f"{where} has classes of the same name: {listed(pairs)}. A model cannot tell them "
            "apart, and the second would have an IoU of 0: make them one class, or give them "
            "different names"
        )


def _aligned(
    labels: Labels, image: ImageArray, orientation: int, image_path: Path, label_path: Path
) -> Labels:
    """Labels that lie on the image as it is shown, which is what ``image`` is.

    They may have been drawn on the stored pixels, before an EXIF orientation turns these. Only the
    size tells, and only where turning changes it.

    Raises:
        InputError: the size fits neither, or it fits both although the image is turned.
    """
    shown = image.shape[:2]
    stored = shown[::-1] if orientation >= 5 else shown
    height, width = labels.shape
    size = f"{label_path} has {width}×{height} pixels and its image {shown[1]}×{shown[0]}"
    if labels.shape not in (shown, stored):
        hint = "" if orientation == 1 else f", turned by its EXIF orientation {orientation}"
        raise InputError(f"{size}{hint}; expected the same size")
    if orientation == 1:
        return labels
    if shown == stored:
        raise InputError(
            f"{image_path} has the EXIF orientation {orientation}, by which it is shown "
            f"{_ORIENTATIONS[orientation]}; {label_path} may be drawn on the stored or on the "
            "shown pixels, and its size fits both. Save the image without the orientation: as it "
            "is shown, if its labels were drawn on what a viewer shows (mogrify -auto-orient), "
            "else by removing the tag (exiftool -Orientation=)"
        )
    if labels.shape == shown:
        return labels
    return _turned(labels, orientation).copy()


def _turned(labels: Labels, orientation: int) -> Labels:
    """A stored map as an EXIF orientation of 5 to 8 shows it."""
    if orientation == 5:
        return labels.T
    if orientation == 7:
        return labels[::-1, ::-1].T
    return np.rot90(labels, -1 if orientation == 6 else 1)


def _pairs(root: Path) -> list[tuple[Path, Path]]:
    """The files of both folders, by their stems; every one must have its partner."""
    images = _by_stem(root / IMAGES, IMAGE_SUFFIXES)
    labels = _by_stem(root / LABELS, _LABEL_SUFFIXES)
    if not images or not labels:
        raise InputError(
            f"no pair of an image {root / IMAGES}/NAME.jpg (or another format) and a label map "
            f"{root / LABELS}/NAME.png: found {len(images)} images and {len(labels)} label maps"
            f"{_unread(root)}"
        )
    lonely = []
    if alone := sorted(images.keys() - labels.keys()):
        lonely.append(
            f"images of {root / IMAGES} without a label map {root / LABELS}/NAME.png: "
            f"{listed(images[stem].name for stem in alone)}"
        )
    # Named together: a name that is spelled in two ways is among both.
    if alone := sorted(labels.keys() - images.keys()):
        lonely.append(
            f"label maps of {root / LABELS} without an image in {root / IMAGES}: "
            f"{listed(labels[stem].name for stem in alone)}"
        )
    if lonely:
        raise InputError("; ".join(lonely) + _unread(root))
    return [(images[stem], labels[stem]) for stem in sorted(images)]


def _by_stem(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    found: dict[str, list[Path]] = defaultdict(list)
    for path in _visible(folder):
        if path.suffix.lower() in suffixes and path.is_file():
            # Archives of a Mac may spell "ö" in two characters where another tool has one.
            found[unicodedata.normalize("NFC", path.stem)].append(path)
    for paths in found.values():
        if len(paths) > 1:
            names = listed(path.name for path in sorted(paths))
            raise InputError(f"{folder} has several files of one name: {names}; keep one of them")
    return {stem: paths[0] for stem, paths in found.items()}


def _visible(folder: Path) -> Iterator[Path]:
    # Hidden files are not data: some systems leave "._NAME.jpg" beside every file.
    return (path for path in folder.iterdir() if not path.name.startswith("."))


def _unread(root: Path) -> str:
    """What else is in both folders, as a clause for a message."""
    said = ""
    for folder, suffixes in ((root / IMAGES, IMAGE_SUFFIXES), (root / LABELS, _LABEL_SUFFIXES)):
        names = sorted(
            f"{path.name}/" if path.is_dir() else path.name
            for path in _visible(folder)
            if path.suffix.lower() not in suffixes or not path.is_file()
        )
        said += f"; not read in {folder}: {listed(names)}" if names else ""
    return said


def listed(names: Iterable[str]) -> str:
    """Names for a message: the first ten, and how many more there are."""
    every = list(names)
    more = len(every) - _LISTED
    return ", ".join(every[:_LISTED]) + (f" and {more} more" if more > 0 else "")
