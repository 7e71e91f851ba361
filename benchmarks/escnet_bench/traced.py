"""What a Segmenter makes of an image: its labels and every prompt on the way."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from escnet_runtime.confusion import Labels
from escnet_runtime.images import ImageArray
from escnet_runtime.segmenter import Segmenter
from escnet_runtime.vocabulary import Vocabulary

__all__ = ["Traced", "trace"]


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
