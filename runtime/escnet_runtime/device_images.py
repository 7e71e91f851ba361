"""Images on a GPU: what is uploaded or taken from there, sent on its way, and what comes back."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from .errors import OutOfDeviceMemory
from .frames import Nv12Frame
from .gpu.pipeline import DevicePipeline, InFlight
from .gpu.pixels import Pixels, frame_pixels
from .host_images import HostImages, Labelled, Window
from .images import ImageArray, load_image
from .shortlist import Shortlist

__all__ = ["DeviceImages", "Sent"]


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """An image on its way on a device, and the rows of embeddings it chooses from (None: all)."""

    flight: InFlight
    loaded: object
    kept: npt.NDArray[np.intp] | None


class DeviceImages:
    """Sends images through a device's pipeline. Not safe for several threads at once.

    An image is pixels on the host, an array on the device, or an NV12 frame on either.

    Args:
        pipeline: the device's.
        host: chooses what an image's shortlist has, before it is sent.
    """

    def __init__(self, pipeline: DevicePipeline, host: HostImages) -> None:
        self._pipeline, self._host = pipeline, host

    def send(
        self,
        loaded: object,
        text: npt.NDArray[np.float32],
        *,
        window: Window,
        shortlist: Shortlist | None,
    ) -> Sent:
        """One image on its way, for embeddings [N, D] of distinct categories.

        Raises:
            OutOfDeviceMemory: also the smallest chunk does not fit; says what would.
        """
        kept = None
        if shortlist is not None:
            kept = self._kept(self.on_host(loaded), text, shortlist, window)
            text = text[kept]
        flight = self._pipeline.submit(self._pixels(loaded), text, sliding=window == "sliding")
        return Sent(flight, loaded, kept)

    def _kept(
        self,
        pixels: ImageArray,
        text: npt.NDArray[np.float32],
        shortlist: Shortlist,
        window: Window,
    ) -> npt.NDArray[np.intp]:
        """What an image's shortlist has, in smaller chunks where memory does not suffice."""
        size = (pixels.shape[0], pixels.shape[1])
        while True:
            chunk = self._pipeline.chunk
            try:
                return self._host.kept(pixels, text, shortlist, window=window, chunk=chunk)
            except OutOfDeviceMemory as error:
                self._pipeline.shrink(error, len(text), size, window == "sliding")

    def receive(self, sent: Sent) -> tuple[ImageArray, Labelled]:
        """Wait for an image: its pixels on the host, and what was found."""
        picture = self._pipeline.finish(sent.flight)
        pixels = sent.loaded if isinstance(sent.loaded, np.ndarray) else picture.image
        assert pixels is not None
        return pixels, Labelled(picture.labels, picture.confidence, sent.kept)

    def drop(self, sent: Sent) -> None:
        """Wait for an image whose result nobody wants."""
        self._pipeline.drop(sent.flight)

    def on_host(self, loaded: object) -> ImageArray:
        """An image's pixels, uint8 [H, W, 3], downloaded if they are on the device."""
        if isinstance(loaded, np.ndarray):
            return loaded
        if isinstance(loaded, Nv12Frame) and not loaded.on_device:
            return loaded.rgb()
        planes = [part.copy_to_host() for part in self._pipeline.taken(loaded).device]
        if isinstance(loaded, Nv12Frame):
            return replace(loaded, luma=planes[0], chroma=planes[1]).rgb()
        return load_image(planes[0][:, :, :3])

    def _pixels(self, loaded: object) -> ImageArray | Pixels:
        if isinstance(loaded, np.ndarray):
            return loaded
        if isinstance(loaded, Nv12Frame) and not loaded.on_device:
            return frame_pixels(loaded)
        return self._pipeline.taken(loaded)
