"""Frames in NV12, as cameras and video decoders give them, for a Segmenter."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from .device.arrays import is_device_array
from .errors import ImageError, InputError
from .images import ImageArray
from .nv12 import YuvEncoding, rgb_of_nv12

__all__ = ["Nv12Frame"]

_HD: Final = YuvEncoding(matrix="bt709", range="limited")


@dataclass(frozen=True, kw_only=True, eq=False)
class Nv12Frame:
    """A frame as luma and, at half the size, chroma; see :mod:`escnet_runtime.nv12`.

    Both are on the host, NumPy arrays of uint8 whose rows may lie apart, or both on the GPU, arrays
    of any library with DLPack or the CUDA array interface, in C order. They must not change before
    the result is there.

    Attributes:
        luma: [H,P], of which the first ``width`` columns count.
        chroma: [ceil(H/2),Q] or [ceil(H/2),Q/2,2], (Cb, Cr) interleaved; as many columns of Q as
            ``width``, rounded up to an even number, count. Odd sizes are fine.
        encoding: what the numbers stand for; the source says it. HD video by default.
        width: of the frame in pixels; all of luma's columns by default. For rows with padding on a
            GPU, where a part of an array would not be in C order.

    Raises:
        ImageError: the planes do not fit together.
        InputError: one is on the host and the other is not.
    """

    luma: Any
    chroma: Any
    encoding: YuvEncoding = _HD
    width: int | None = None

    def __post_init__(self) -> None:
        if is_device_array(self.luma) != is_device_array(self.chroma):
            raise InputError("got luma and chroma in different memories; expected both in one")
        if not self.on_device and not all(
            isinstance(plane, np.ndarray) and plane.dtype == np.uint8
            for plane in (self.luma, self.chroma)
        ):
            raise ImageError(
                f"got planes {_told(self.luma)} and {_told(self.chroma)}; expected NumPy arrays of "
                "uint8, or arrays on the GPU"
            )
        if self.width is None and len(self.luma.shape) == 2:
            object.__setattr__(self, "width", int(self.luma.shape[1]))
        self._check()

    @classmethod
    def stacked(
        cls, surface: Any, *, encoding: YuvEncoding = _HD, width: int | None = None
    ) -> "Nv12Frame":
        """A frame from one array [3H/2,P], chroma below luma, as decoders give it; H is even.

        ``frame.to_ndarray(format="nv12")`` of PyAV is one, and so is a surface of NVDEC.

        Raises:
            ImageError: it has another shape.
        """
        shape = tuple(surface.shape)
        if len(shape) != 2 or not shape[0] or shape[0] % 3:
            raise ImageError(
                f"got a surface {list(shape)}; expected [3H/2,P] with an even H. Of an odd one, "
                "give luma and chroma apart"
            )
        height = shape[0] // 3 * 2
        return cls(luma=surface[:height], chroma=surface[height:], encoding=encoding, width=width)

    @property
    def on_device(self) -> bool:
        """Whether it lies on a GPU."""
        return is_device_array(self.luma)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        assert self.width is not None
        return int(self.luma.shape[0]), self.width

    def rgb(self) -> ImageArray:
        """The frame as uint8 [H,W,3], made on the host.

        Raises:
            InputError: it lies on a GPU.
        """
        if self.on_device:
            raise InputError("got a frame on a GPU; expected one on the host: copy its planes")
        height, width = self.size
        half = (-(-height // 2), -(-width // 2), 2)
        chroma = self.chroma.reshape(half[0], -1, 2)[:, : half[1]]
        return rgb_of_nv12(self.luma[:, :width], chroma, self.encoding)

    def _check(self) -> None:
        luma, chroma = tuple(self.luma.shape), tuple(self.chroma.shape)
        pairs = len(chroma) == 3 and chroma[2] == 2
        columns = chroma[1] * 2 if pairs else (chroma[1] if len(chroma) == 2 else 0)
        width = self.width or 0
        if (
            len(luma) != 2
            or not 1 <= width <= luma[1]
            or not luma[0]
            or chroma[0] != -(-luma[0] // 2)
            or columns % 2
            or columns < -(-width // 2) * 2
        ):
            raise ImageError(
                f"got luma {list(luma)} and chroma {list(chroma)} for a width of {self.width}; "
                "expected [H,P] and [ceil(H/2),Q] or [ceil(H/2),Q/2,2], with P at least the width "
                "and an even Q at least as large"
            )


def _told(plane: object) -> str:
    return str(plane.dtype) if isinstance(plane, np.ndarray) else type(plane).__name__
