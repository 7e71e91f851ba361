"""Sliding windows: a large image in four overlapping windows plus the whole image.

CAT-Seg's evaluation protocol (windows of 384 px at 0 and 256 on a 640 px canvas), generalised to
any image size S and logits grid l of the model. Windows move by ``round(2/3 * l)`` cells of the
logits grid, so that their logits fall onto a common grid, the canvas, of ``l + stride`` cells.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from escnet_runtime.errors import InputError
from escnet_runtime.images import ImageArray
from escnet_runtime.postprocess import resize_bilinear
from escnet_runtime.preprocess import resize

__all__ = ["LogitCanvas", "WindowPlan", "crops", "plan_windows"]


@dataclass(frozen=True, kw_only=True)
class WindowPlan:
    """Where the windows lie; offsets are (row, column), the whole image comes after the windows."""

    window_pixels: int
    window_cells: int
    canvas_pixels: int
    canvas_cells: int
    pixel_offsets: tuple[tuple[int, int], ...]
    cell_offsets: tuple[tuple[int, int], ...]


def plan_windows(size: int, logits: int) -> WindowPlan:
    """Plan for a model with images of ``size`` px square and ``logits`` cells square.

    Raises InputError if the stride is not a whole number of pixels.
    """
    if size < 1 or logits < 2:
        raise InputError(
            f"got images of {size} px and a grid of {logits} cells; windows need at least 1 and 2"
        )
    stride_cells = round(logits * 2 / 3)
    stride_pixels, rest = divmod(stride_cells * size, logits)
    if rest:
        raise InputError(
            f"got images of {size} px and a grid of {logits} cells: the windows' stride of "
            f"{stride_cells} cells is {stride_cells * size / logits:.2f} px; expected a whole "
            "number, segment this model without windows"
        )
    corners = ((0, 0), (0, 1), (1, 0), (1, 1))
    return WindowPlan(
        window_pixels=size,
        window_cells=logits,
        canvas_pixels=size + stride_pixels,
        canvas_cells=logits + stride_cells,
        pixel_offsets=tuple((y * stride_pixels, x * stride_pixels) for y, x in corners),
        cell_offsets=tuple((y * stride_cells, x * stride_cells) for y, x in corners),
    )


def crops(image: ImageArray, plan: WindowPlan) -> list[ImageArray]:
    """The model's five inputs, uint8 [S,S,3]: the windows of the plan, then the whole image.

    ``image`` is uint8 [H,W,3] of any size; it is squeezed to the square canvas, aspect not kept.
    """
    size = plan.window_pixels
    canvas = resize(image, plan.canvas_pixels, plan.canvas_pixels)
    windows = [
        np.ascontiguousarray(canvas[y : y + size, x : x + size]) for y, x in plan.pixel_offsets
    ]
    return [*windows, resize(image, size, size)]


class LogitCanvas:
    """Joins the logits of the windows and of the whole image on one grid.

    Windows are averaged where they overlap; that and the whole image's logits, enlarged
    bilinearly, are averaged half and half. The paper is silent: CAT-Seg averages sigmoids; this
    model is trained with a softmax over categories, where the logits are what adds up.
    """

    def __init__(self, plan: WindowPlan, categories: int) -> None:
        """An empty canvas; it holds 4 · categories · canvas_cells² bytes."""
        self._plan = plan
        cells, window = plan.canvas_cells, plan.window_cells
        self._sum = np.zeros((categories, cells, cells), np.float32)
        self._added = np.zeros((len(plan.cell_offsets) + 1, categories), bool)
        cover = np.zeros((cells, cells), np.float32)
        for y, x in plan.cell_offsets:
            cover[y : y + window, x : x + window] += 1
        self._share = 0.5 / cover

    def add(self, window_index: int, category_slice: slice, logits: NDArray[np.float32]) -> None:
        """Add the logits, float32 [n,l,l], of crop ``window_index`` for some categories.

        Raises InputError for a wrong index or shape, and for what was added before.
        """
        self._check(window_index, category_slice, logits)
        total = self._sum[category_slice]
        if window_index == len(self._plan.cell_offsets):
            cells = self._plan.canvas_cells
            total += 0.5 * resize_bilinear(logits, cells, cells)
        else:
            y, x = self._plan.cell_offsets[window_index]
            window = self._plan.window_cells
            rows, columns = slice(y, y + window), slice(x, x + window)
            total[:, rows, columns] += self._share[rows, columns] * logits
        self._added[window_index, category_slice] = True

    def chunk(self, category_slice: slice) -> NDArray[np.float32]:
        """The joined logits, float32 [n,c,c], of some categories (a view of the canvas).

        Raises InputError if a window of one of them has not been added.
        """
        missing = np.argwhere(~self._added[:, category_slice])
        if len(missing):
            raise InputError(
                f"crop {missing[0][0]} of {len(self._added)} has not been added for category "
                f"{range(self._added.shape[1])[category_slice][missing[0][1]]}"
            )
        return self._sum[category_slice]

    def _check(self, index: int, categories: slice, logits: NDArray[np.float32]) -> None:
        if not 0 <= index < len(self._added):
            raise InputError(f"got window {index}; expected 0 to {len(self._added) - 1}")
        cells = self._plan.window_cells
        expected = (len(range(self._added.shape[1])[categories]), cells, cells)
        if logits.dtype != np.float32 or logits.shape != expected:
            raise InputError(
                f"got logits {logits.dtype} {list(logits.shape)} for the categories {categories}; "
                f"expected float32 {list(expected)}"
            )
        if self._added[index, categories].any():
            raise InputError(f"got window {index} of some of {categories} a second time")
