"""Bilinear interpolation, as PyTorch's ``align_corners=False`` has it.

Output pixel ``i`` of ``n`` lies at ``(i + 0.5) * l / n - 0.5`` on a grid of ``l`` cells, clamped to
``[0, l - 1]``. A value is ``a + w * (b - a)``, along the width first and then along the height, in
float32.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Taps", "bilinear_taps", "resize_bilinear"]

Float32 = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Taps:
    """Where along one axis each output pixel lies between two cells of the grid.

    ``lower`` and ``upper`` are int64 [n] indices of cells, ``weight`` float32 [n] in [0, 1] is the
    share of ``upper``.
    """

    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    weight: Float32


def bilinear_taps(cells: int, pixels: int) -> Taps:
    """Taps that interpolate ``cells`` values to ``pixels`` values (``align_corners=False``)."""
    position = (np.arange(pixels) + 0.5) * (cells / pixels) - 0.5
    position = position.clip(0, cells - 1)
    lower = position.astype(np.int64)
    return Taps(
        lower=lower,
        upper=np.minimum(lower + 1, cells - 1),
        weight=(position - lower).astype(np.float32),
    )


def resize_bilinear(logits: Float32, height: int, width: int) -> Float32:
    """Interpolate float32 [n,h,w] to [n,height,width]: the plain form, which holds everything."""
    columns, rows = bilinear_taps(logits.shape[2], width), bilinear_taps(logits.shape[1], height)
    left = logits[:, :, columns.lower]
    wide = left + columns.weight * (logits[:, :, columns.upper] - left)
    top = wide[:, rows.lower]
    result: Float32 = top + rows.weight[:, None] * (wide[:, rows.upper] - top)
    return result
