"""Labelled images by what names them: a folder, or a set of the built-in small world."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .confusion import ConfusionCounter
from .dataset import Dataset, LabelledImages, Sample, listed
from .errors import InputError
from .world import ShapesDataset, class_groups, dataset

__all__ = [
    "PREPARED",
    "SHAPES",
    "ShapesImages",
    "absent_warning",
    "dataset_name",
    "open_labelled",
]

#: How the names of the built-in sets begin; a folder of such a name is reached as ``./shapes:...``.
SHAPES: Final = "shapes:"
#: Says that escnet-prepare made the folder.
PREPARED: Final = "prepared.json"
_FEW: Final = 20  # classes: of more, it is common that some do not occur


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapesImages:
    """Scenes of the small world as labelled images; the labels are uint16, none is ignored."""

    scenes: ShapesDataset

    @property
    def names(self) -> tuple[str, ...]:
        """All names that can occur in the set."""
        return self.scenes.classes

    @property
    def groups(self) -> Mapping[str, tuple[int, ...]]:
        """``held_out``, ``seen`` and ``surfaces``, as far as they occur."""
        return class_groups(self.scenes.split)

    def __len__(self) -> int:
        return len(self.scenes)

    def __iter__(self) -> Iterator[Sample]:
        """Draw the scenes in order; a name is the scene's number in the set."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        """Draw one scene. IndexError outside of the set."""
        image, labels = self.scenes[index]
        return Sample(name=f"scene{index:06}", image=image, labels=labels)


def open_labelled(
    where: str, *, scenes: int | None = None, objects: tuple[int, int] | None = None
) -> LabelledImages:
    """The dataset that ``where`` names.

    Args:
        where: a dataset folder, or ``shapes:train``, ``shapes:heldout``, ``shapes:heldout:SEED``.
        scenes: number of scenes of a built-in set, by default its own; a folder has its images.
        objects: fewest and most objects of a scene, 1 to 32; by default 2 to 6.

    Raises:
        InputError: there is no such dataset, it is not in order, or ``objects`` was given for a
            folder.
    """
    if where.startswith(SHAPES):
        drawn = dataset(where, length=scenes, objects=(2, 6) if objects is None else objects)
        return ShapesImages(scenes=drawn)
    if objects is not None:
        raise InputError(
            f"{where} is a folder, whose scenes are as they are; a number of objects goes with "
            f"{SHAPES}train and {SHAPES}heldout"
        )
    return Dataset.open(Path(where))


def dataset_name(where: str) -> str:
    """The dataset's name in published results: a folder's name without the folders above it."""
    return where if where.startswith(SHAPES) else Path(where).resolve().name


def absent_warning(images: LabelledImages, counter: ConfusionCounter) -> str | None:
    """A sentence if a folder of few classes has no pixel of some, and pixels that are not labelled.

    Masks of 0 and 255 look so, and are measured on one class. Folders of escnet-prepare are right
    in this, and may well be a part of a dataset.

    Args:
        images: all of a dataset: of a part of one, that classes are missing says nothing.
        counter: of all of them.
    """
    names = images.names
    if not isinstance(images, Dataset) or (images.root / PREPARED).is_file():
        return None
    if len(names) > _FEW or not counter.unlabelled:
        return None
    pairs = zip(names, counter.scores().iou, strict=True)
    absent = [repr(name) for name, iou in pairs if iou is None]
    if not absent or len(absent) == len(names):
        return None
    return (
        f"no pixel of {images.root} is labelled as {listed(absent)}, which the mean IoU is "
        'without: 255 (in 16 bits 65535) means "not labelled" and is no class; label the first '
        "class 0, the second 1"
    )
