"""Where every tensor of an image lies on the device, known before the first image.

A layout is planned by :mod:`.layout_plan`; here is what it consists of.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from ..device.base import ALIGNMENT
from ..manifest import DType
from ..order import Step
from ..windows import WindowPlan

__all__ = [
    "ITEM_BYTES",
    "Call",
    "Grows",
    "Layout",
    "Value",
    "View",
    "aligned",
    "bucket_of",
    "picture_offsets",
]

ITEM_BYTES: Final[dict[DType, int]] = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "int8": 1,
    "uint8": 1,
}
_LEAST_STEP: Final = 8  # rows that matrix units work on at once

#: What the size of a value grows with.
Grows = Literal["nothing", "categories", "chunk", "pixels"]


def bucket_of(categories: int) -> int:
    """The size that so many categories are padded to: what is planned serves all up to there.

    Multiples of 8, and from 128 on of an eighth of the power of two below: at most an eighth of
    the work is padding.
    """
    step = max(_LEAST_STEP, (1 << categories.bit_length() - 1) // 8)
    return -(-categories // step) * step


@dataclass(slots=True, eq=False)
class Value:
    """A tensor with its life in steps, and its first byte in the arena once that is planned.

    Attributes:
        part: rows that lie one behind the other; the next so many begin at an aligned address.
            They are the rows of a chunk, which a graph is given by their address. 0: all rows.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    grows: Grows
    first: int
    last: int
    part: int = 0
    offset: int = 0

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * ITEM_BYTES[self.dtype]

    @property
    def step(self) -> int:
        """Bytes from where a part begins to where the next one does; 0 if there is one alone."""
        return aligned(self.part * self.row_bytes) if self.part else 0

    @property
    def bytes(self) -> int:
        """Bytes from the first element to the end of the last."""
        return self.start_of(self.shape[0] - 1) + self.row_bytes

    def start_of(self, row: int) -> int:
        """Where a row begins, in bytes."""
        index, inside = divmod(row, self.part or self.shape[0])
        return index * self.step + inside * self.row_bytes

    def parts(self) -> Iterator[tuple[slice, int]]:
        """The rows of each part, and where they begin in bytes."""
        rows = self.shape[0]
        for start in range(0, rows, self.part or rows):
            yield slice(start, min(start + (self.part or rows), rows)), self.start_of(start)


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """Some rows of a value: all of them, or contiguous ones."""

    value: Value
    start: int  # bytes
    shape: tuple[int, ...]

    @property
    def offset(self) -> int:
        """Offset of the first byte in the arena."""
        return self.value.offset + self.start


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A step with the places that it reads and writes, by the names of the graph's ports.

    The sums of a graph have a second place, under the name that they go by when all chunks are
    added up; the decoder's logits have "best", "total" and the picture beside them, or with windows
    its part of the canvas. ``where`` are the rows of the bucket that it works on.
    """

    step: Step
    where: slice
    reads: dict[str, View]
    writes: dict[str, View]


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """All calls of an image and the arena they share.

    With sliding windows the calls are those of one crop: all crops run the same ones, one after the
    other, and only the canvas is kept from one to the next. It holds the logits of all categories
    as float32, as on the CPU: the categories of a crop have to be computed together, so nothing
    smaller can wait for the next crop (each category's embedding is larger than its canvas).

    Attributes:
        bucket: rows of categories, the real ones and padding.
        chunk: the most of them that a graph is given at once.
        size: height and width of the image in pixels.
        label_bytes: of a label.
        bytes: of the arena.
        fixed: what stays in place between images: "active", "text", "picture". With windows also
            "canvas", "resized" and "resized_whole".
        windows: where the sliding windows lie; None if the image is looked at once.
    """

    bucket: int
    chunk: int
    size: tuple[int, int]
    label_bytes: int
    bytes: int
    calls: tuple[Call, ...]
    values: tuple[Value, ...]
    fixed: Mapping[str, View]
    windows: WindowPlan | None = None

    @property
    def picture_bytes(self) -> int:
        """Labels and, behind them, confidences: what is downloaded."""
        return self.fixed["picture"].value.bytes


def picture_offsets(pixels: int, label_bytes: int) -> tuple[int, int]:
    """Bytes of the labels, up to where confidences begin, and of both."""
    labels = aligned(pixels * label_bytes)
    return labels, labels + 2 * pixels


def aligned(size: int) -> int:
    """Bytes up to where the next thing may begin."""
    return -(-size // ALIGNMENT) * ALIGNMENT
