"""What a Segmenter makes of an image, labels and every prompt on the way, and sums of that."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from escnet_runtime.confusion import ConfusionCounter, Labels
from escnet_runtime.images import ImageArray
from escnet_runtime.segmenter import Segmenter
from escnet_runtime.vocabulary import Vocabulary

__all__ = ["Traced", "TracedCounts", "trace"]


@dataclass(frozen=True, slots=True)
class Traced:
    """Labels [H, W], and all prompts, int16 [P, 3]: x, y and whether it is one; block by block."""

    labels: Labels
    prompts: npt.NDArray[np.int16]


def trace(segmenter: Segmenter, image: ImageArray, vocabulary: Vocabulary) -> Traced:
    """Segment ``image``.

    On a GPU it is run twice: the labels are those of the pipeline there, which can show nothing of
    what happens inside it; the prompts are those of the same graphs driven from the host.
    """
    prompts: list[npt.NDArray[np.int16]] = []

    def observe(stage: str, where: slice, outputs: Mapping[str, Any]) -> None:
        if stage.endswith("_prompts"):
            found, rows = outputs["prompts"], where.stop - where.start
            point, valid = found.points[:rows], found.point_labels[:rows, :, None]
            prompts.append(np.concatenate([point, valid], axis=2).reshape(-1, 3).astype(np.int16))

    labels = segmenter(image, vocabulary, observer=observe).labels
    if segmenter.device_pipeline is not None:
        labels = segmenter(image, vocabulary).labels
    return Traced(labels, np.concatenate(prompts))


class TracedCounts:
    """What is added up over images: a bundle against the truth, and against float32 PyTorch.

    Args:
        classes: of the labels.
        blocks: ESC blocks of the model.

    Attributes:
        ours, theirs: confusion of the bundle, and of PyTorch.
        flips, prompts: int64 [blocks], prompts that PyTorch chooses otherwise, and all.
        images: all that were added; ``pixels`` and ``equal`` (those with PyTorch's label) are of
            the images that PyTorch has seen as well.
    """

    def __init__(self, classes: int, blocks: int) -> None:
        self.ours, self.theirs = ConfusionCounter(classes), ConfusionCounter(classes)
        self.flips = np.zeros(blocks, np.int64)
        self.prompts = np.zeros(blocks, np.int64)
        self.images = self.pixels = self.equal = 0

    def add(self, got: Traced, want: Traced | None, truth: Labels) -> None:
        """Count an image that the bundle made ``got`` of, and PyTorch ``want``, if it was asked.

        Raises:
            InputError: the labels do not fit the truth.
        """
        self.ours.add(got.labels, truth)
        self.images += 1
        if want is None:
            return
        self.theirs.add(want.labels, truth)
        self.pixels += want.labels.size
        self.equal += int((got.labels == want.labels).sum())
        moved = (got.prompts != want.prompts).any(axis=1).reshape(len(self.flips), -1)
        self.flips += moved.sum(axis=1)
        self.prompts += moved.shape[1]
