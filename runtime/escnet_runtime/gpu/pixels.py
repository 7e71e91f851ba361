"""Images as they are brought to the device: bytes one part behind the other, and what they mean."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..device.arrays import DeviceArray, device_array
from ..device.base import Device, Stream
from ..errors import ImageError
from ..frames import Nv12Frame
from ..images import ImageArray
from ..kernels import DeviceImage
from ..nv12 import YuvEncoding

__all__ = ["Pixels", "frame_pixels", "pixels_of", "taken_pixels"]


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """An image of uint8, on the host (rows may lie apart there) or on the device.

    Attributes:
        size: height and width in pixels.
        layout: one packed part, or luma and chroma.
        pitches: bytes from row to row of each part, once they lie one behind the other.
        host: the parts [rows,pitch] on the host; empty if they are on the device.
        device: the parts on the device; empty if they are on the host.
        encoding: of NV12.
    """

    size: tuple[int, int]
    layout: Literal["rgb", "rgba", "nv12"]
    pitches: tuple[int, ...]
    host: tuple[npt.NDArray[np.uint8], ...] = ()
    device: tuple[DeviceArray, ...] = ()
    encoding: YuvEncoding | None = None

    @property
    def bytes(self) -> int:
        """Bytes of all parts."""
        host = sum(part.nbytes for part in self.host)
        return host + sum(part.nbytes for part in self.device)

    def write(self, target: npt.NDArray[np.uint8]) -> None:
        """Put the parts that are on the host one behind the other."""
        start = 0
        for part in self.host:
            target[start : start + part.nbytes].reshape(part.shape)[:] = part
            start += part.nbytes

    def at(self, address: int) -> DeviceImage:
        """The image once its bytes lie at an address."""
        height, width = self.size
        chroma = self.layout == "nv12"
        return DeviceImage(
            layout=self.layout,
            height=height,
            width=width,
            pixels=address,
            pitch=self.pitches[0],
            chroma=address + height * self.pitches[0] if chroma else 0,
            chroma_pitch=self.pitches[1] if chroma else 0,
            encoding=self.encoding,
        )


def pixels_of(image: ImageArray | DeviceArray) -> Pixels:
    """The pixels of an RGB image [H,W,3] or, on the device, also of RGBA [H,W,4]."""
    height, width, channels = image.shape
    layout: Literal["rgb", "rgba"] = "rgb" if channels == 3 else "rgba"
    pitches = (channels * width,)
    if isinstance(image, DeviceArray):
        return Pixels((height, width), layout, pitches, device=(image,))
    flat = np.ascontiguousarray(image).reshape(height, channels * width)
    return Pixels((height, width), layout, pitches, host=(flat,))


def frame_pixels(frame: Nv12Frame) -> Pixels:
    """The pixels of a frame on the host, without a copy."""
    height, width = frame.size
    wide = -(-width // 2) * 2
    chroma = frame.chroma if frame.chroma.ndim == 2 else frame.chroma[:, : wide // 2]
    planes = (frame.luma[:, :width], chroma.reshape(len(chroma), -1)[:, :wide])
    return Pixels((height, width), "nv12", (width, wide), host=planes, encoding=frame.encoding)


def taken_pixels(image: object, device: Device, reader: Stream) -> Pixels:
    """Of an image of another library in the device's memory, ordered behind what makes it.

    Raises:
        ImageError: it is another shape.
        InputError: it is another type, or somewhere else.
    """
    if isinstance(image, Nv12Frame):
        luma, chroma = (
            device_array(plane, device=device, reader=reader, dtype=np.uint8)
            for plane in (image.luma, image.chroma)
        )
        pitches = (luma.shape[1], chroma.nbytes // chroma.shape[0])
        return Pixels(image.size, "nv12", pitches, device=(luma, chroma), encoding=image.encoding)
    found = device_array(image, device=device, reader=reader, dtype=np.uint8)
    shape = found.shape
    if len(shape) != 3 or shape[2] not in (3, 4) or 0 in shape:
        raise ImageError(
            f"got an array {list(shape)} on the device; expected [H,W,3] RGB or [H,W,4] RGBA"
        )
    return pixels_of(found)
