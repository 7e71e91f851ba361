"""NV12 images of cameras and video decoders as RGB.

NV12 is a plane of luma, uint8 [H,W], and a plane of chroma at half the size, uint8
[ceil(H/2), ceil(W/2), 2], (Cb, Cr) interleaved. A chroma sample belongs to the 2×2 pixels it stands
for, without interpolation.

With the luma coefficients Kr and Kb of the matrix, and Kg = 1 - Kr - Kb:

- Y = (luma - 16) / 219, Cb = (cb - 128) / 224, Cr = (cr - 128) / 224 in the limited range;
  luma / 255, (cb - 128) / 255 and (cr - 128) / 255 in the full one.
- R = Y + 2 (1 - Kr) Cr, B = Y + 2 (1 - Kb) Cb, G = (Y - Kr R - Kb B) / Kg.
- A channel is 255 times that, rounded to the next whole number, halves up, and clamped to 0..255.

Sources: ITU-R BT.601-7, section 2.5 (Kr 0.299, Kb 0.114), and ITU-R BT.709-6, items 3.2 to 3.4
(Kr 0.2126, Kb 0.0722); the full range is that of ITU-T H.273 (VideoFullRangeFlag 1).

The coefficients are rounded to multiples of 2**-20, and all else is exact integers, which a GPU
computes the same. So a channel is off the formula only where that is within 0.001 of a half, and
then by one level.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from escnet_runtime.errors import ImageError, InputError
from escnet_runtime.images import ImageArray

__all__ = ["YuvCoefficients", "YuvEncoding", "rgb_of_nv12"]

_BITS = 20
_LUMA = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}  # matrix → Kr, Kb
_RANGES = ("limited", "full")


class YuvCoefficients(NamedTuple):
    """Whole numbers: ``black`` is a luma, the others are multiples of 2**-20.

    R = luma (y - black) + red_cr (cr - 128), G = … + green_cb … + green_cr …, B = … + blue_cb ….
    """

    black: int
    luma: int
    red_cr: int
    green_cb: int
    green_cr: int
    blue_cb: int


@dataclass(frozen=True, kw_only=True)
class YuvEncoding:
    """How numbers stand for colours. The source says it; HD video is mostly bt709 and limited."""

    matrix: Literal["bt601", "bt709"]
    range: Literal["limited", "full"]

    def __post_init__(self) -> None:
        if self.matrix not in _LUMA or self.range not in _RANGES:
            raise InputError(
                f"got matrix {self.matrix!r} and range {self.range!r}; expected one of "
                f"{', '.join(_LUMA)} and one of {', '.join(_RANGES)}"
            )

    def coefficients(self) -> YuvCoefficients:
        kr, kb = _LUMA[self.matrix]
        kg = 1 - kr - kb
        full = self.range == "full"
        luma, chroma = (1.0, 1.0) if full else (255 / 219, 255 / 224)
        factors = (
            luma,
            chroma * 2 * (1 - kr),
            -chroma * 2 * kb * (1 - kb) / kg,
            -chroma * 2 * kr * (1 - kr) / kg,
            chroma * 2 * (1 - kb),
        )
        return YuvCoefficients(0 if full else 16, *(round(one * 2**_BITS) for one in factors))


def rgb_of_nv12(
    luma: NDArray[np.uint8], chroma: NDArray[np.uint8], encoding: YuvEncoding
) -> ImageArray:
    """Turn NV12, planes as above, into uint8 [H,W,3] RGB. H and W may be odd.

    Raises ImageError for planes of another type or shape.
    """
    h, w = luma.shape if luma.ndim == 2 else (0, 0)
    half = (-(-h // 2), -(-w // 2), 2)
    if {luma.dtype, chroma.dtype} != {np.dtype(np.uint8)} or not h * w or chroma.shape != half:
        raise ImageError(
            f"got luma {luma.dtype} {list(luma.shape)} and chroma {chroma.dtype} "
            f"{list(chroma.shape)}; expected uint8 [H,W] and uint8 [ceil(H/2), ceil(W/2), 2]"
        )
    by = encoding.coefficients()
    grey = by.luma * (luma.astype(np.int32) - by.black)
    wide = chroma.astype(np.int32).repeat(2, axis=0).repeat(2, axis=1)[:h, :w] - 128
    cb, cr = wide[:, :, 0], wide[:, :, 1]
    channels = (
        grey + by.red_cr * cr,
        grey + by.green_cb * cb + by.green_cr * cr,
        grey + by.blue_cb * cb,
    )
    levels = (np.stack(channels, axis=2) + (1 << (_BITS - 1))) >> _BITS
    return levels.clip(0, 255).astype(np.uint8)
