"""Shrinks images and label maps to a largest shorter side; none is enlarged.

Published figures of ADE20K-847 are measured on such images: MaskFormer's preparation, which later
work uses too, shrinks to 512 px by OpenCV's bilinear interpolation and saves JPEG. Here the filter
averages over all pixels and the image is saved without loss; sizes are the same.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from escnet_runtime.errors import ImageError
from escnet_runtime.images import require_pixels
from escnet_runtime.preprocess import resize

from .plan import LabelMap, Pair

__all__ = ["put_shrunk", "shrunk_labels", "shrunk_size"]


def shrunk_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width with a shorter side of ``side`` px; unchanged if it is not longer."""
    shorter = min(height, width)
    if shorter <= side:
        return height, width
    return round(height / shorter * side), round(width / shorter * side)


def shrunk_labels(labels: LabelMap, side: int) -> LabelMap:
    """A label map uint16 [H, W] at its :func:`shrunk_size`, by nearest neighbour."""
    height, width = shrunk_size(labels.shape[0], labels.shape[1], side)
    if (height, width) == labels.shape:
        return labels
    picture = Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST)
    return np.array(picture, np.uint16)


def put_shrunk(pair: Pair, folder: Path, side: int) -> bool:
    """Write a pair's image as PNG into ``folder`` at its :func:`shrunk_size`.

    Pixels are kept as stored and EXIF is copied, because its orientation is applied by the reader,
    to image and labels alike. If the image is small enough, nothing is written; returns False.

    Raises ImageError if the image cannot be read.
    """
    try:
        with Image.open(pair.image) as image:
            require_pixels(image, "the file")
            height, width = shrunk_size(image.height, image.width, side)
            if (width, height) == image.size:
                return False
            pixels, exif = np.asarray(image.convert("RGB")), image.getexif()
    except Exception as error:  # decoders raise nearly anything for damaged files
        raise ImageError(f"cannot read the image {pair.image}: {error}") from error
    shrunk = Image.fromarray(resize(pixels, height, width))
    shrunk.save(folder / f"{pair.stem}.png", "PNG", exif=exif)
    return True
