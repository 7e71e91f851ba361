"""What a shortlist of categories saves and costs, compared with the model that sees all of them."""

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol

import numpy as np

from escnet_runtime.confusion import ConfusionCounter, Labels
from escnet_runtime.console import Advance
from escnet_runtime.dataset import CLASSES, LabelledImages
from escnet_runtime.errors import InputError
from escnet_runtime.images import ImageArray, find_images, load_image
from escnet_runtime.labelled import SHAPES, open_labelled
from escnet_runtime.segmenter import Segmenter
from escnet_runtime.shortlist import Keep, Shortlist
from escnet_runtime.vocabulary import Vocabulary

from .distractors import enlarged

if TYPE_CHECKING:
    from typing_extensions import Self  # of typing from Python 3.11 on

__all__ = [
    "METHOD",
    "Pictures",
    "ShortlistRow",
    "Where",
    "measure_shortlists",
    "open_pictures",
    "variants",
]

Where = Literal["correlation", "first-block"]

METHOD: Final = (
    "every image by the full model and with every shortlist in turns, in one process, the first of "
    "them another for each image, after one call each; p50_ms is the median of whole calls, the "
    "choice of categories included and their text embeddings not; speedup is the median over "
    "images of the full model's time by this one's; a label that is a distractor counts as wrong; "
    "miou_loss is miou of the full model less this one's; agreement is the share of labels equal "
    "to the full model's"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShortlistRow:
    """Figures for one number of categories with one shortlist.

    Attributes:
        categories: number of names given; ``distinct_categories`` of them differ.
        classes: number of them that are classes of the labels; the others are distractors. None
            without labels.
        shortlist: a number, "auto", or None for the full model.
        where: the scores that choose; None for the full model.
        kept_mean, kept_max: distinct categories that the model was given for an image.
        p50_ms: median time of a whole call.
        speedup: against the full model, whose own is 1.
        miou, pixel_accuracy: None without labels.
        miou_loss: full model's mIoU minus this one's; below zero if the shortlist is better.
        agreement: share of labels equal to the full model's.
        images: number of images; all are in every figure.
    """

    categories: int
    distinct_categories: int
    classes: int | None
    shortlist: Keep | None
    where: Where | None
    kept_mean: float
    kept_max: int
    p50_ms: float
    speedup: float
    miou: float | None
    miou_loss: float | None
    pixel_accuracy: float | None
    agreement: float
    images: int


class Pictures(Protocol):
    """Images, with labels or without."""

    @property
    def names(self) -> tuple[str, ...]:
        """Classes that labels are indices into; empty without labels."""

    def __len__(self) -> int: ...

    def each(self) -> Iterable[tuple[ImageArray, Labels | None]]:
        """The images, in order."""


@dataclass(frozen=True, slots=True)
class _Labelled:
    dataset: LabelledImages
    limit: int

    @property
    def names(self) -> tuple[str, ...]:
        return self.dataset.names

    def __len__(self) -> int:
        return min(len(self.dataset), self.limit)

    def each(self) -> Iterable[tuple[ImageArray, Labels | None]]:
        return ((one.image, one.labels) for one in islice(iter(self.dataset), self.limit))


@dataclass(frozen=True, slots=True)
class _Photos:
    paths: tuple[Path, ...]
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def each(self) -> Iterable[tuple[ImageArray, Labels | None]]:
        return ((load_image(path), None) for path in self.paths)


def open_pictures(where: str, limit: int) -> Pictures:
    """The first ``limit`` images of a dataset, or of a folder of images without labels.

    Raises:
        InputError: there are none.
    """
    if not where.startswith(SHAPES) and not Path(where, CLASSES).exists():
        return _Photos(tuple(find_images([where])[:limit]))
    return _Labelled(open_labelled(where), limit)


def variants(shortlists: Sequence[Keep], where: Sequence[Where]) -> list[Shortlist]:
    """All shortlists to compare. "auto" has no threshold for the first block, and is left out."""
    made = [
        Shortlist(keep, blocks=1 if place == "first-block" else 0)
        for place in where
        for keep in shortlists
        if (keep, place) != ("auto", "first-block")
    ]
    return list(dict.fromkeys(made))


def measure_shortlists(
    segmenter: Segmenter,
    pictures: Pictures,
    distractors: Sequence[str],
    categories: Sequence[int],
    shortlists: Sequence[Shortlist],
    *,
    step: Advance,
) -> list[ShortlistRow]:
    """Measure the full model and every shortlist, for each number of categories.

    Args:
        segmenter: of the model.
        pictures: the images to segment.
        distractors: names to add to the pictures' own.
        categories: numbers of categories, the pictures' own included.
        shortlists: the shortlists to compare with the full model.
        step: called after every image.

    Raises:
        InputError: there are no pictures, or a number of categories cannot be made.
    """
    if not len(pictures):
        raise InputError("there are no images to measure with; name others")
    vocabularies = [enlarged(pictures.names, distractors, count) for count in categories]
    rows = []
    for names in vocabularies:
        vocabulary = segmenter.vocabulary(names)
        tallies = [_Tally.of(len(names), None), *(_Tally.of(len(names), s) for s in shortlists)]
        _run(segmenter, pictures, vocabulary, tallies, step)
        full = tallies[0]
        rows += [_row(tally, full, vocabulary, len(pictures.names)) for tally in tallies]
    return rows


@dataclass(slots=True)
class _Tally:
    """Results so far of one way to run, image by image."""

    shortlist: Shortlist | None
    counter: ConfusionCounter
    seconds: list[float] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    equal: int = 0
    pixels: int = 0

    @classmethod
    def of(cls, categories: int, shortlist: Shortlist | None) -> "Self":
        return cls(shortlist, ConfusionCounter(categories))


def _run(
    segmenter: Segmenter,
    pictures: Pictures,
    vocabulary: Vocabulary,
    tallies: Sequence[_Tally],
    step: Advance,
) -> None:
    for index, (image, truth) in enumerate(pictures.each()):
        if index == 0:  # graphs are loaded, and memory has been asked for
            for tally in tallies:
                segmenter(image, vocabulary, shortlist=tally.shortlist)
        found: dict[int, Labels] = {}
        for turn in range(len(tallies)):
            place = (index + turn) % len(tallies)
            tally = tallies[place]
            start = time.perf_counter()
            result = segmenter(image, vocabulary, shortlist=tally.shortlist)
            tally.seconds.append(time.perf_counter() - start)
            assert result.kept is not None
            tally.kept.append(result.kept)
            found[place] = result.labels
        for place, tally in enumerate(tallies):
            tally.equal += int(np.count_nonzero(found[place] == found[0]))
            tally.pixels += found[0].size
            if truth is not None:
                tally.counter.add(found[place], truth)
        step(f"{len(vocabulary.names)} categories, image {index + 1}")


def _row(tally: _Tally, full: _Tally, vocabulary: Vocabulary, classes: int) -> ShortlistRow:
    def scored(one: _Tally) -> tuple[float | None, float | None]:
        if not classes:
            return None, None
        scores = one.counter.scores(range(classes))
        return scores.miou, scores.pixel_accuracy

    miou, accuracy = scored(tally)
    of_full = scored(full)[0]
    ratios = [slow / fast for slow, fast in zip(full.seconds, tally.seconds, strict=True)]
    shortlist = tally.shortlist
    return ShortlistRow(
        categories=len(vocabulary.names),
        distinct_categories=len(vocabulary.embeddings),
        classes=classes or None,
        shortlist=None if shortlist is None else shortlist.keep,
        where=None if shortlist is None else "first-block" if shortlist.blocks else "correlation",
        kept_mean=statistics.fmean(tally.kept),
        kept_max=max(tally.kept),
        p50_ms=1e3 * statistics.median(tally.seconds),
        speedup=statistics.median(ratios),
        miou=miou,
        miou_loss=None if miou is None or of_full is None else of_full - miou,
        pixel_accuracy=accuracy,
        agreement=tally.equal / tally.pixels,
        images=len(tally.kept),
    )
