"""From an image to the input of the image encoder.

The resize is Pillow's ``resize(..., Resampling.BILINEAR)`` on uint8, which any other implementation
has to reproduce within 1/255. For one axis from ``n`` to ``m`` pixels:

- ``scale = n / m``; the triangle filter ``max(0, 1 - |x|)`` is stretched by ``f = max(1, scale)``,
  so that reducing averages over all source pixels and enlarging is plain bilinear interpolation.
- Output pixel ``i`` is centred at ``c = (i + 0.5) * scale``. It sums the source pixels
  ``j`` from ``max(0, int(c - f + 0.5))`` up to, not including, ``min(n, int(c + f + 0.5))``, with
  weights ``triangle((j + 0.5 - c) / f)`` divided by their sum (float64).
- Weights are rounded to multiples of 2**-22, halves away from zero; the sum over uint8 pixels is
  exact, gets 2**-1 added, is floored, and is clamped to 0..255.

The axis that is reduced more goes first (height if ``H * width > W * height``, else width), which
keeps the picture between the passes small; it is rounded to uint8. An axis whose size does not
change is left alone (the formula then gives the identity). Which axis Pillow itself takes first
depends on its version (13 changed it) and moves results by 1/255, so each pass is asked for alone.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from escnet_runtime.errors import ImageError, InputError
from escnet_runtime.images import ImageArray

__all__ = ["Preprocessing", "level_table", "preprocess", "resize"]

_MOST_MEAN, _LEAST_STD = 10.0, 1e-3


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What the image encoder expects: ``size`` px square, ``(x/255 - mean) / std`` a channel."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Literal["pillow-bilinear"] = "pillow-bilinear"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"got image size {self.size}; expected at least 1 pixel")
        # Both come from a file. The bounds keep pixels within what float16 holds.
        three = {len(self.mean), len(self.std)} == {3}
        usable = all(abs(mean) <= _MOST_MEAN for mean in self.mean) and all(
            _LEAST_STD <= std < math.inf for std in self.std
        )
        if not three or not usable:  # in this form, so that NaN is not
            raise InputError(
                f"got mean {self.mean} and std {self.std}; expected three numbers each, those of "
                f"mean within ±{_MOST_MEAN:g}, those of std finite and at least {_LEAST_STD:g}"
            )


def resize(image: ImageArray, height: int, width: int) -> ImageArray:
    """Resize uint8 [H,W,3] to [height,width,3] with the filter described above."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ImageError(
            f"got an array {image.dtype} {list(image.shape)}; expected uint8 [H,W,3], as "
            "load_image() returns"
        )
    picture = Image.fromarray(np.ascontiguousarray(image))
    tall = picture.height * width > picture.width * height
    between = (picture.width, height) if tall else (width, picture.height)
    for size in (between, (width, height)):
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    return np.array(picture)


def preprocess(image: ImageArray, spec: Preprocessing) -> NDArray[np.float32]:
    """Turn uint8 [H,W,3] RGB into float32 [1,3,S,S], the whole image squeezed to S×S.

    The paper is silent; as CAT-Seg, the aspect is not kept.
    """
    pixels = resize(image, spec.size, spec.size)
    tables = level_table(spec)  # faster than arithmetic
    return np.stack([tables[c][pixels[:, :, c]] for c in range(3)])[None]


def level_table(spec: Preprocessing) -> NDArray[np.float32]:
    """The normalised values of the 256 levels of each channel, [3,256], rounded once."""
    levels = np.arange(256)[None] / 255
    mean, std = np.array(spec.mean)[:, None], np.array(spec.std)[:, None]
    table: NDArray[np.float32] = ((levels - mean) / std).astype(np.float32)
    return table
