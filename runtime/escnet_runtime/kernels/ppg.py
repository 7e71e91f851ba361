"""Launching ``escnet_ppg``."""

import ctypes
from dataclasses import dataclass

from escnet_runtime.errors import InputError
from escnet_runtime.ppg import MAX_PIXELS, PpgConstants

from .launch import FloatType, Launch, type_code

__all__ = ["PpgBuffers", "PpgParts", "ppg_launch"]

_WARP = 32


@dataclass(frozen=True, kw_only=True)
class PpgBuffers:
    """Device addresses of contiguous arrays; shapes and types as in ``escnet_runtime.ppg``.

    ``scores`` [N,h,w] may be of any float type. ``active`` holds one int32, the number of
    categories in use: those from there on get no prompt and their scores are not read. 0 (no
    address) stands for all N. It is read when the kernel runs, so a captured launch serves any
    number up to N.
    """

    scores: int
    active: int
    points: int
    point_labels: int
    regions: int
    probabilities: int


@dataclass(frozen=True, kw_only=True)
class PpgParts:
    """Arrays that are not contiguous: ``rows`` categories are, and then a new part begins.

    The others are elements of an array from where a part begins to where the next one does.
    """

    rows: int
    scores: int
    points: int
    point_labels: int
    regions: int
    probabilities: int


def ppg_launch(
    buffers: PpgBuffers,
    shape: tuple[int, int, int],
    score_type: FloatType,
    constants: PpgConstants,
    *,
    parts: PpgParts | None = None,
) -> Launch:
    """Prompts of maps [N,h,w], as ``escnet_runtime.ppg.pseudo_prompts`` of them in float32.

    Points, labels and regions are equal bit for bit; probabilities differ by the rounding of
    ``exp``. With ``parts`` the arrays lie in parts. Raises InputError for a shape or type that the
    kernel does not take.
    """
    n, h, w = shape
    if min(shape) < 1 or h * w > MAX_PIXELS or n >= 1 << 31:
        raise InputError(
            f"got maps {list(shape)}; expected [N,h,w] with 1 to {MAX_PIXELS} pixels a map and N "
            "from 1 to 2147483647"
        )
    pointers = (
        buffers.scores,
        buffers.active,
        buffers.points,
        buffers.point_labels,
        buffers.regions,
        buffers.probabilities,
    )
    if parts is None:
        parts = PpgParts(rows=n, scores=0, points=0, point_labels=0, regions=0, probabilities=0)
    steps = (parts.scores, parts.points, parts.point_labels, parts.regions, parts.probabilities)
    if parts.rows < 1 or min(steps) < 0 or max(steps) >= 1 << 31:
        raise InputError(f"got {parts}; expected at least one row, and steps below 2147483648")
    integers = (type_code(score_type), h, w, constants.regions, constants.iterations)
    return Launch(
        kernel="escnet_ppg",
        grid=(n, 1, 1),
        block=(-(-h * w // _WARP) * _WARP, 1, 1),
        arguments=(
            *map(ctypes.c_void_p, pointers),
            *map(ctypes.c_int, integers),
            ctypes.c_float(constants.threshold_offset),
            ctypes.c_float(constants.temperature),
            *map(ctypes.c_int, (parts.rows, *steps)),
        ),
    )
