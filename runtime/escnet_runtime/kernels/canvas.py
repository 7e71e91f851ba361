"""Launching ``escnet_canvas``."""

import ctypes

from escnet_runtime.errors import InputError
from escnet_runtime.windows import WindowPlan

from .launch import THREADS, FloatType, Launch, blocks, type_code

__all__ = ["canvas_launch"]

_MOST_CELLS = 1 << 38  # of all categories: a grid has fewer than 2^31 blocks


def canvas_launch(
    logits: int,
    canvas: int,
    plan: WindowPlan,
    crop: int,
    *,
    categories: int,
    first_category: int,
    logit_type: FloatType = "float32",
    active: int = 0,
) -> Launch:
    """Add a chunk of one crop's logits to the canvas, as ``LogitCanvas.add`` and bit for bit.

    Crops are added in their order; the first one starts the canvas anew.

    Args:
        logits: address of contiguous [n,l,l], of any float type.
        canvas: address of contiguous float32 [n,c,c], that of the chunk's first category.
        plan: of the windows.
        crop: 0 to 3 for the windows, 4 for the whole image, as :func:`escnet_runtime.windows.crops`
            has them.
        categories: n.
        first_category: the number of the chunk's first category.
        logit_type: of ``logits``.
        active: address of one int32, the categories in use of all chunks together; 0 (no address)
            if all are. It is read when the kernel runs; the others are left as they are.

    Raises InputError for what the kernel does not take.
    """
    _check(plan, crop, categories, first_category)
    windows, elements = len(plan.cell_offsets), categories * plan.canvas_cells**2
    whole = crop == windows
    top, left = (0, 0) if whole else plan.cell_offsets[crop]
    integers = (
        type_code(logit_type),
        categories,
        first_category,
        crop == 0,
        whole,
        plan.window_cells,
        plan.canvas_cells,
        top,
        left,
    )
    return Launch(
        kernel="escnet_canvas",
        grid=(blocks(elements), 1, 1),
        block=(THREADS, 1, 1),
        arguments=(
            *map(ctypes.c_void_p, (logits, active, canvas)),
            *map(ctypes.c_int, integers),
            ctypes.c_double(plan.window_cells / plan.canvas_cells),
        ),
    )


def _check(plan: WindowPlan, crop: int, categories: int, first_category: int) -> None:
    windows, side = len(plan.cell_offsets), plan.canvas_cells
    if not 0 <= crop <= windows:
        raise InputError(f"got crop {crop}; expected 0 to {windows}")
    if categories < 1 or first_category < 0 or categories * side**2 >= _MOST_CELLS:
        raise InputError(
            f"got {categories} categories from category {first_category} on, on a canvas of "
            f"{side}×{side} cells; expected at least 1, from 0 on, and fewer than 2^38 cells of all"
        )
