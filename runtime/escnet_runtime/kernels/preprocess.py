"""Launching ``escnet_resize`` and ``escnet_normalise``: from an image to the encoder's input.

And ``escnet_nv12_rgb``: from NV12 to what people look at.
"""

import ctypes
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from escnet_runtime.errors import InputError
from escnet_runtime.nv12 import YuvCoefficients, YuvEncoding
from escnet_runtime.preprocess import Preprocessing, level_table

from .launch import THREADS, Launch, blocks

__all__ = [
    "DeviceImage",
    "Layout",
    "PreprocessPlan",
    "normalise_launch",
    "nv12_rgb_launch",
    "preprocess_plan",
    "resize_launch",
]

Layout: TypeAlias = Literal["rgb", "bgr", "rgba", "bgra", "nv12"]

_LAYOUTS: tuple[str, ...] = get_args(Layout)  # the order of the enumeration in the source
_MOST_SIDE = 1 << 20  # sums of more pixels than this do not fit 31 bits
_WEIGHT_BITS = 22
_LEVEL_BYTES = 3 * 256 * 4  # the levels come first in the tables
_NO_COLOURS = YuvCoefficients(0, 0, 0, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class DeviceImage:
    """An image of uint8 in device memory.

    ``pixels`` is the address of row 0, ``pitch`` the bytes from there to row 1. For "nv12" these
    are the luma's, and ``chroma``, ``chroma_pitch`` and ``encoding`` are needed too, see
    :mod:`escnet_runtime.nv12`. Of "rgba" and "bgra" the fourth channel is not read. A part of a
    packed image is an image: its address is that of its first pixel, its pitch the same.
    """

    layout: Layout
    height: int
    width: int
    pixels: int
    pitch: int
    chroma: int = 0
    chroma_pitch: int = 0
    encoding: YuvEncoding | None = None

    def __post_init__(self) -> None:
        if self.layout not in _LAYOUTS:
            raise InputError(f"got layout {self.layout!r}; expected one of {', '.join(_LAYOUTS)}")
        _check_size(self.height, self.width)
        packed = self.layout != "nv12"
        least = self.width * len(self.layout) if packed else self.width
        if not least <= self.pitch < 1 << 31:
            raise InputError(
                f"got a pitch of {self.pitch} bytes for {self.width} pixels of {self.layout}; "
                f"expected at least {least} and fewer than 2^31"
            )
        least = (self.width + 1) // 2 * 2
        chroma = self.chroma and least <= self.chroma_pitch < 1 << 31 and self.encoding
        if not packed and not chroma:
            raise InputError(
                f"got nv12 with chroma at {self.chroma}, its pitch {self.chroma_pitch} and "
                f"encoding {self.encoding}; expected an address, at least {least} bytes and a "
                "YuvEncoding"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class PreprocessPlan:
    """What images of one size have in common. Made once; nothing is computed for a frame.

    Attributes:
        source: (height, width) of the images.
        canvas: side of the square they are squeezed to, in pixels.
        size: side of the encoder's input, a part of the canvas or all of it.
        tables: int32 [t], to be copied to the device once.
    """

    source: tuple[int, int]
    canvas: int
    size: int
    tables: npt.NDArray[np.int32]

    @property
    def rows_first(self) -> bool:
        """Whether the height is resized first: the axis that is reduced more is."""
        return self.source[0] > self.source[1]

    @property
    def between(self) -> tuple[int, int]:
        """(height, width) of the image between the launches."""
        height, width = self.source
        return (self.canvas, width) if self.rows_first else (height, self.canvas)

    @property
    def scratch_bytes(self) -> int:
        """Bytes of the image between the two launches."""
        return 3 * self.between[0] * self.between[1]


def preprocess_plan(
    spec: Preprocessing, source: tuple[int, int], *, canvas: int | None = None
) -> PreprocessPlan:
    """Plan for images of ``source`` = (height, width) pixels.

    ``canvas`` is the side of the square that windows are cut from (``WindowPlan.canvas_pixels``);
    without it, it is the encoder's input itself. Raises InputError for sizes out of range.
    """
    canvas = spec.size if canvas is None else canvas
    _check_size(*source)
    _check_size(canvas, canvas)
    if canvas < spec.size:
        raise InputError(
            f"got a canvas of {canvas} px for inputs of {spec.size} px; expected at least as much"
        )
    parts = (
        level_table(spec).view(np.int32),
        _axis_table(max(source), canvas),  # the longer axis is reduced more, so it goes first
        _axis_table(min(source), canvas),
    )
    tables = np.concatenate([part.ravel() for part in parts])
    return PreprocessPlan(source=source, canvas=canvas, size=spec.size, tables=tables)


def resize_launch(plan: PreprocessPlan, image: DeviceImage, *, tables: int, scratch: int) -> Launch:
    """Resize the first axis of ``image`` into ``scratch``; one launch serves all windows.

    Args:
        plan: for images of this size.
        image: any layout.
        tables: address of a copy of ``plan.tables``.
        scratch: address of ``plan.scratch_bytes`` bytes.

    Raises InputError for an image of another size.
    """
    if (image.height, image.width) != plan.source:
        raise InputError(
            f"got an image of {image.height}×{image.width} pixels for a plan of "
            f"{plan.source[0]}×{plan.source[1]}; make a plan for this size"
        )
    height, width = plan.between
    colours = image.encoding.coefficients() if image.encoding else _NO_COLOURS
    integers = (
        _LAYOUTS.index(image.layout),
        image.pitch,
        image.chroma_pitch,
        plan.rows_first,
        height,
        width,
        *colours,
    )
    return Launch(
        kernel="escnet_resize",
        grid=(blocks(height * width), 1, 1),
        block=(THREADS, 1, 1),
        arguments=(
            *map(ctypes.c_void_p, (image.pixels, image.chroma, tables + _LEVEL_BYTES, scratch)),
            *map(ctypes.c_int, integers),
        ),
    )


def normalise_launch(
    plan: PreprocessPlan,
    *,
    tables: int,
    scratch: int,
    output: int,
    offset: tuple[int, int] = (0, 0),
) -> Launch:
    """Resize the other axis and normalise, as ``preprocess`` and bit for bit.

    Args:
        plan: as for :func:`resize_launch`, which runs before.
        tables: address of a copy of ``plan.tables``.
        scratch: what that launch wrote.
        output: address of contiguous float32 [3,S,S].
        offset: (row, column) of the window in the canvas, ``WindowPlan.pixel_offsets``.

    Raises InputError for a window that leaves the canvas.
    """
    room = plan.canvas - plan.size
    if not (0 <= offset[0] <= room and 0 <= offset[1] <= room):
        raise InputError(
            f"got a window at {offset} of {plan.size} px on a canvas of {plan.canvas} px; "
            f"expected offsets from 0 to {room}"
        )
    height, width = plan.between
    first_entries = (2 + _taps(max(plan.source), plan.canvas)) * plan.canvas
    second = tables + _LEVEL_BYTES + 4 * first_entries
    integers = (not plan.rows_first, height, width, plan.canvas, plan.size, *offset)
    return Launch(
        kernel="escnet_normalise",
        grid=(blocks(3 * plan.size * plan.size), 1, 1),
        block=(THREADS, 1, 1),
        arguments=(
            *map(ctypes.c_void_p, (scratch, second, tables, output)),
            *map(ctypes.c_int, integers),
        ),
    )


def nv12_rgb_launch(image: DeviceImage, rgb: int) -> Launch:
    """Write an image in NV12 as uint8 [H,W,3] RGB, as ``rgb_of_nv12`` and bit for bit.

    Args:
        image: in NV12.
        rgb: address of contiguous uint8 [H,W,3].

    Raises InputError for an image of another layout.
    """
    if image.encoding is None or image.layout != "nv12":
        raise InputError(f"got an image of layout {image.layout!r}; expected 'nv12'")
    integers = (
        image.pitch,
        image.chroma_pitch,
        image.height,
        image.width,
        *image.encoding.coefficients(),
    )
    return Launch(
        kernel="escnet_nv12_rgb",
        grid=(blocks(image.height * image.width), 1, 1),
        block=(THREADS, 1, 1),
        arguments=(
            *map(ctypes.c_void_p, (image.pixels, image.chroma, rgb)),
            *map(ctypes.c_int, integers),
        ),
    )


def _check_size(height: int, width: int) -> None:
    if not (1 <= height <= _MOST_SIDE and 1 <= width <= _MOST_SIDE):
        raise InputError(f"got {height}×{width} pixels; expected sides of 1 to {_MOST_SIDE}")


def _taps(n: int, m: int) -> int:
    """Pixels that are summed at most when n become m."""
    return 2 * -(-max(n, m) // m) + 1


def _axis_table(n: int, m: int) -> npt.NDArray[np.int32]:
    """The filter of ``escnet_runtime.preprocess`` from n to m pixels, int32 [2 + taps, m].

    Row 0 is the first pixel, row 1 how many; then their weights in multiples of 2**-22.
    """
    scale = n / m
    stretch = max(1.0, scale)
    centre = (np.arange(m) + 0.5) * scale
    low = np.maximum(0, (centre - stretch + 0.5).astype(np.int64))
    high = np.minimum(n, (centre + stretch + 0.5).astype(np.int64))
    pixel = low + np.arange(_taps(n, m))[:, None]
    weight = np.maximum(0.0, 1 - np.abs((pixel - centre + 0.5) * (1 / stretch)))
    weight[pixel >= high] = 0.0
    # One after the other, as Pillow does: np.sum would round differently.
    weight /= np.add.accumulate(weight)[-1]
    units = np.floor(weight * (1 << _WEIGHT_BITS) + 0.5)
    return np.concatenate([low[None], (high - low)[None], units]).astype(np.int32)
