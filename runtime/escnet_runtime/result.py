"""The result of a segmentation."""

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from escnet_runtime import pictures
from escnet_runtime.errors import InputError
from escnet_runtime.images import ImageArray

__all__ = ["Segmentation"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Segmentation:
    """The category of each pixel of an image.

    ``labels`` is uint8 or uint16 [H,W], an index into ``names``; ``confidence`` float16 [H,W] is
    the softmax over all categories of the pixel's label, with a shortlist over those it keeps;
    ``image`` is uint8 [H,W,3]. ``note`` is a caution the legend prints, such as "untrained weights:
    masks are noise". ``kept`` is how many distinct categories the model was given: all, or those of
    a shortlist; None if that is not known.

    Raises InputError if the shapes differ or a label has no name.
    """

    labels: NDArray[np.uint8] | NDArray[np.uint16]
    confidence: NDArray[np.float16]
    names: tuple[str, ...]
    image: ImageArray
    note: str | None = None
    kept: int | None = None

    def __post_init__(self) -> None:
        pictures.check_labels(self.labels, self.names)
        size = self.labels.shape
        if self.confidence.shape != size or self.image.shape != (*size, 3):
            raise InputError(
                f"got labels {list(size)}, confidence {list(self.confidence.shape)} and image "
                f"{list(self.image.shape)}; expected [H,W], [H,W] and [H,W,3]"
            )

    def __repr__(self) -> str:
        height, width = self.labels.shape
        return f"Segmentation({width}×{height} pixels, {len(self.names)} categories)"

    def area(self) -> dict[str, float]:
        """The fraction of pixels of each category that is present, largest first.

        Equal fractions keep the order of ``names``; categories of the same name are added up.
        """
        return pictures.areas(self.labels, self.names)

    def overlay(self, *, alpha: float = 0.5, legend: bool = True, largest: int = 30) -> Image.Image:
        """The image under its categories' colours, RGB; see pictures.draw_overlay."""
        return pictures.draw_overlay(
            self.image,
            self.labels,
            self.names,
            alpha=alpha,
            legend=legend,
            largest=largest,
            note=self.note,
        )

    def label_image(self) -> Image.Image:
        """The labels as a palette image (up to 256 categories) or 16-bit grey."""
        return pictures.label_image(self.labels, len(self.names))

    def save_labels(self, path: str | os.PathLike[str]) -> None:
        """Write the labels and names as a PNG, which pictures.read_label_png() reads back."""
        pictures.save_label_png(path, self.labels, self.names)
