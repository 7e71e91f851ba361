"""Records what happens to an image's categories between photo and label map, for drawing."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from escnet_runtime.backends import Backend
from escnet_runtime.confusion import ConfusionCounter, Labels, Scores, ignore_index
from escnet_runtime.dataset import Dataset, LabelledImages, Sample, listed
from escnet_runtime.errors import InputError
from escnet_runtime.images import ImageArray
from escnet_runtime.ppg import Prompts
from escnet_runtime.segmenter import Segmenter
from escnet_runtime.vocabulary import Vocabulary

__all__ = ["CategoryTrace", "ImageTrace", "choose", "trace_image"]

_Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CategoryTrace:
    """One category of an image, from block to block of B.

    Attributes:
        index: of the class, in the dataset.
        pixels: of the ground truth that are this class.
        iou: over this image.
        scores: float32 [B+1, h, w], the correlation before the first block and after each.
        prompts: of this category alone (N = 1), into each of the blocks.
        logits: float32 [l, l].
    """

    index: int
    pixels: int
    iou: float
    scores: _Floats
    prompts: tuple[Prompts, ...]
    logits: _Floats


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ImageTrace:
    """An image, its ground truth, its prediction, and how that came about.

    Attributes:
        name: of the image, in the dataset.
        image: uint8 [H, W, 3].
        truth: uint8 or uint16 [H, W]; 255 resp. 65535 is "not labelled".
        prediction: uint8 or uint16 [H, W].
        classes: names of the dataset's classes.
        scores: figures over this image alone.
        categories: the classes with most pixels in the ground truth, most first.
    """

    name: str
    image: ImageArray
    truth: Labels
    prediction: Labels
    classes: tuple[str, ...]
    scores: Scores
    categories: tuple[CategoryTrace, ...]


def choose(
    dataset: LabelledImages, names: Sequence[str] | None, limit: int | None
) -> Iterator[Sample]:
    """The named images of a dataset, or the first ``limit``, in its order, read one at a time.

    An image of a folder may be named with or without its suffix, and no other file is read.

    Raises:
        InputError: a name is no image: at once for a folder, behind the last image for a dataset
            whose names are not known before.
    """
    if names is None:
        return islice(iter(dataset), limit)
    if not isinstance(dataset, Dataset):
        return _named(dataset, names)
    stem_of = {path.name: path.stem for path, _ in dataset.pairs}
    wanted = {stem_of.get(name, name) for name in names}
    pairs = tuple(pair for pair in dataset.pairs if pair[0].stem in wanted)
    _refuse(wanted - {path.stem for path, _ in pairs})
    return iter(dataclasses.replace(dataset, pairs=pairs))


def _named(images: LabelledImages, names: Sequence[str]) -> Iterator[Sample]:
    missing = set(names)
    for sample in images:
        if sample.name in missing:
            missing.remove(sample.name)
            yield sample
        if not missing:
            return
    _refuse(missing)


def _refuse(missing: set[str]) -> None:
    if missing:
        raise InputError(f"the dataset has no image called {listed(sorted(missing))}")


def trace_image(
    segmenter: Segmenter,
    vocabulary: Vocabulary,
    sample: Sample,
    classes: Sequence[str],
    *,
    shown: int,
) -> ImageTrace:
    """Segment an image and keep what happened to the ``shown`` largest classes of its labels.

    Classes that are a duplicate of an earlier one have no scores of their own and are left out.

    Args:
        segmenter: of a bundle or of a checkpoint.
        vocabulary: what the model is asked for, as many and in the order of ``classes``.
        sample: the image and its labels.
        classes: names of the dataset's classes.
        shown: classes to keep, at least 1.

    Raises:
        InputError: a label is no class, or the numbers of classes differ.
    """
    if len(vocabulary.names) != len(classes):
        raise InputError(
            f"got {len(vocabulary.names)} categories for a dataset of {len(classes)} classes; "
            f"expected {len(classes)}, in the order of the dataset's classes"
        )
    known = sample.labels[sample.labels != ignore_index(sample.labels)]
    if known.size and known.max() >= len(classes):
        raise InputError(
            f"{sample.name} has the label {known.max()}; expected 0 to {len(classes) - 1}"
        )
    pixels = np.bincount(known, minlength=len(classes))
    rows = {int(label): row for row, label in enumerate(vocabulary.label_of)}
    order = np.argsort(-pixels, kind="stable")[: np.count_nonzero(pixels)].tolist()
    largest = [index for index in order if index in rows][:shown]

    watch = _Watch(segmenter.pipeline.backend, [rows[index] for index in largest])
    prediction: Labels = segmenter(sample.image, vocabulary, observer=watch).labels
    counter = ConfusionCounter(len(classes))
    counter.add(prediction, sample.labels)
    scores = counter.scores()
    return ImageTrace(
        name=sample.name,
        image=sample.image,
        truth=sample.labels,
        prediction=prediction,
        classes=tuple(classes),
        scores=scores,
        categories=tuple(
            CategoryTrace(
                index=index,
                pixels=int(pixels[index]),
                iou=scores.iou[index] or 0.0,  # never None: it is in the ground truth
                scores=watch.scores(position),
                prompts=watch.prompts(position),
                logits=watch.logits(position),
            )
            for position, index in enumerate(largest)
        ),
    )


class _Watch:
    """An observer of the pipeline that keeps the tensors of some categories.

    Its memory depends only on the rows kept, not on the number of categories or on chunks.
    """

    def __init__(self, backend: Backend, rows: Sequence[int]) -> None:
        self._backend, self._rows = backend, list(rows)
        self._scores: dict[str, dict[int, _Floats]] = {}  # by stage, in their order
        self._logits: dict[int, _Floats] = {}
        self._prompts: list[Prompts] = []  # into each block, of the rows alone

    def __call__(self, stage: str, where: slice, outputs: Mapping[str, Any]) -> None:
        """See :data:`escnet_runtime.pipeline.Observer`."""
        if stage.endswith("_prompts"):
            self._prompts.append(_rows_of(outputs["prompts"], self._rows))
        elif stage == "decoder":
            self._logits |= self._kept(where, outputs["logits"])
        elif stage == "correlation" or stage.endswith("_text"):
            name = "scores" if stage == "correlation" else "scores_out"
            self._scores.setdefault(stage, {}).update(self._kept(where, outputs[name]))

    def scores(self, position: int) -> _Floats:
        """[B+1, h, w] of one of the rows."""
        return np.stack([maps[self._rows[position]] for maps in self._scores.values()])

    def logits(self, position: int) -> _Floats:
        """[l, l] of one of the rows."""
        return self._logits[self._rows[position]]

    def prompts(self, position: int) -> tuple[Prompts, ...]:
        """One of the rows' prompts into each block."""
        return tuple(_rows_of(prompts, [position]) for prompts in self._prompts)

    def _kept(self, where: slice, tensor: Any) -> dict[int, _Floats]:
        inside = [row for row in self._rows if where.start <= row < where.stop]
        if not inside:
            return {}
        maps = self._backend.to_host(tensor)
        # Copies: the pipeline refines some of these arrays in place.
        return {row: np.array(maps[row - where.start], np.float32) for row in inside}


def _rows_of(prompts: Prompts, rows: list[int]) -> Prompts:
    """The prompts of some categories, copied."""
    return Prompts(
        points=prompts.points[rows],
        point_labels=prompts.point_labels[rows],
        regions=prompts.regions[rows],
        probabilities=prompts.probabilities[rows],
    )
