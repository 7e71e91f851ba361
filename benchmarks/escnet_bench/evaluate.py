"""Segmenting a dataset and comparing the label maps with its labels."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from escnet_runtime.confusion import Confusion, ConfusionCounter, Labels, Scores
from escnet_runtime.dataset import LabelledImages, require_distinct
from escnet_runtime.errors import InputError
from escnet_runtime.images import ImageArray
from escnet_runtime.labelled import absent_warning
from escnet_runtime.segmenter import Segmenter, Window
from escnet_runtime.shortlist import Keep, Shortlist
from escnet_runtime.vocabulary import Vocabulary

from .class_names import positions
from .clip_alone import correlation_labels
from .eval_work import WorkFile, counting

__all__ = ["Evaluation", "check_categories", "class_keys", "evaluate"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The result of an evaluation.

    ``names`` are the dataset's classes, in the order of ``scores.iou``; ``groups`` has the figures
    of the dataset's groups of classes by their names. ``confusions`` are the commonest mistakes,
    None if there are very many classes. ``seconds`` is the wall-clock time, over all ``runs``, of
    reading, segmenting and counting the images, without encoding the categories. ``kept_mean`` and
    ``kept_max`` say how many distinct categories the model was given for an image. ``extra`` are
    categories beyond the classes, which count as wrong; in ``confusions`` their indices follow
    those of the classes.
    """

    scores: Scores
    groups: Mapping[str, Scores]
    names: tuple[str, ...]
    categories: int
    extra: tuple[str, ...]
    images: int
    seconds: float
    runs: int
    kept_mean: float
    kept_max: int
    confusions: tuple[Confusion, ...] | None


def evaluate(
    segmenter: Segmenter,
    dataset: LabelledImages,
    *,
    categories: Sequence[str] | None = None,
    merge_extra: bool = False,
    window: Window = "none",
    shortlist: Keep | Shortlist | None = None,
    correlation: bool = False,
    limit: int | None = None,
    work: WorkFile | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Segment the images of ``dataset`` and compare them with their labels.

    An image that cannot be read is an error and is not left out: figures over fewer images could
    not be compared.

    Args:
        segmenter: of a bundle or of a checkpoint.
        dataset: images with labels.
        categories: what the model is asked for, in the order of the dataset's classes; by default
            these. There may be further ones behind them: a pixel that is given one is wrong and
            counts as missed for its class; they have no IoU and are not in the mean.
        merge_extra: further categories count as the last class instead (PASCAL VOC-20b: the
            background, described by the things in it).
        window: "sliding" is the protocol of the paper.
        shortlist: give the model only the categories that may win; see docs/shortlist.md.
        correlation: measure the correlation of the model's CLIP instead of the model: the baseline
            for its ESC blocks.
        limit: use only the first so many images, in the dataset's order.
        work: file of counts, written every few seconds and however this ends; images that it has
            counted before are not segmented again.
        progress: called with the name of each image after it, also for those counted before.

    Raises:
        InputError: the categories do not fit the classes, a shortlist is asked of the correlation,
            or a file cannot be used.
    """
    names = dataset.names
    asked = names if categories is None else tuple(categories)
    check_categories(names, asked, limit, more=True)
    if correlation and shortlist is not None:
        raise InputError(
            "a shortlist chooses the categories that the model is given; the correlation alone "
            "runs no model: leave out one of the two"
        )
    extra = () if merge_extra else asked[len(names) :]
    vocabulary = segmenter.vocabulary(asked)
    predict = _predictor(
        segmenter, vocabulary, window=window, shortlist=shortlist, correlation=correlation
    )
    counter = ConfusionCounter(len(names), extra=len(extra))
    total = len(dataset) if limit is None else min(limit, len(dataset))
    with counting(counter, total, work) as counted:
        totals = counted.totals
        for _ in range(totals.images):
            progress("counted before")
        for index in range(totals.images, total):
            sample = dataset[index]
            labels, kept = predict(sample.image)
            if merge_extra:
                labels = np.minimum(labels, labels.dtype.type(len(names) - 1))
            try:
                counted.add(labels, sample.labels, kept)
            except InputError as error:
                raise InputError(f"{sample.name}: {error}") from error
            progress(sample.name)
    warning = absent_warning(dataset, counter)
    if warning is not None and categories is None and limit is None:
        _log.warning("%s", warning)
    worst = counter.worst()
    return Evaluation(
        scores=counter.scores(),
        groups={name: counter.scores(classes) for name, classes in dataset.groups.items()},
        names=names,
        categories=len(asked),
        extra=tuple(extra),
        images=totals.images,
        seconds=totals.seconds,
        runs=totals.runs,
        kept_mean=totals.kept_sum / totals.images if totals.images else 0.0,
        kept_max=totals.kept_max,
        confusions=None if worst is None else tuple(worst),
    )


def _predictor(
    segmenter: Segmenter,
    vocabulary: Vocabulary,
    *,
    window: Window,
    shortlist: Keep | Shortlist | None,
    correlation: bool,
) -> Callable[[ImageArray], tuple[Labels, int]]:
    """Image → labels, and the number of distinct categories given to the model (0: no model)."""
    if correlation:
        return lambda image: (correlation_labels(segmenter, image, vocabulary, window=window), 0)

    def segmented(image: ImageArray) -> tuple[Labels, int]:
        result = segmenter(image, vocabulary, window=window, shortlist=shortlist)
        assert result.kept is not None
        return result.labels, result.kept

    return segmented


def class_keys(names: Sequence[str]) -> list[str]:
    """A unique key for each class: its name, with its index appended if the name is not unique."""
    keys: dict[str, None] = {}
    every = set(names)
    for index, name in enumerate(names):
        key = name
        while key in keys or (key != name and key in every):
            key += f" (class {index})"
        keys[key] = None
    return list(keys)


def check_categories(
    names: Sequence[str], asked: Sequence[str], limit: int | None, *, more: bool = False
) -> None:
    """Refuse a limit below 1, and categories that do not match a dataset's classes in order.

    Args:
        names: the dataset's classes.
        asked: categories; they may be other words for the classes.
        limit: on the number of images.
        more: whether further categories may follow those of the classes.

    Raises:
        InputError: there are too few or too many, two classes have the same name, or the names are
            the dataset's in another order.
    """
    if limit is not None and limit < 1:
        raise InputError(f"the limit is {limit} images; expected at least 1")
    classes = len(names)
    if len(asked) < classes or (len(asked) > classes and not more):
        expected = f"{classes} or more" if more else str(classes)
        raise InputError(
            f"got {len(asked)} categories for a dataset of {classes} classes; expected {expected}, "
            "in the order of the dataset's classes"
        )
    first = asked[:classes]
    require_distinct(first, "the list of categories")
    places = positions(first, names, "the list of categories", "the dataset's classes")
    for index, place in enumerate(places):
        if place != index:
            raise InputError(
                f"the categories are the dataset's classes in another order: {asked[index]!r} is "
                f"entry {index + 1} and class {place + 1} ({names[place]!r}); expected the order "
                "of the dataset's classes"
            )
