"""What an image on its way needs beside the arena: its pixels before, its picture after.

A slot belongs to one image from its upload to its result. With two of them one image is uploaded
and another downloaded while a third computes. What is downloaded lies in front, one part behind the
other: labels and confidences, then the image itself if it came from the device or as NV12. On the
host it takes the place of what was uploaded, which has been computed with by then.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

from ..closing import Closing
from ..device.base import Device, DeviceMemory, Event, HostMemory
from .layout import aligned

__all__ = ["Slot", "SlotPlan", "SlotPool", "SlotSize"]


#: Bytes that rows of a decoder's surface are rounded up to, at most, as far as is known.
_PITCH: Final = 512


@dataclass(frozen=True, slots=True)
class SlotSize:
    """Bytes of a slot on the device, and on the host."""

    device: int
    host: int

    def with_room_for(self, other: "SlotSize") -> "SlotSize":
        """The larger of both, on either side."""
        return SlotSize(max(self.device, other.device), max(self.host, other.host))


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """Where in a slot everything of an image lies, in bytes.

    Attributes:
        size: height and width in pixels.
        picture: bytes of labels and confidences, which lie in front.
    """

    size: tuple[int, int]
    picture: int

    @property
    def image(self) -> int:
        """Where the image begins that is downloaded with its labels."""
        return aligned(self.picture)

    @property
    def rgb(self) -> int:
        """Bytes of the image as RGB."""
        return 3 * self.size[0] * self.size[1]

    def source(self, layout: str) -> int:
        """Where the pixels are brought to: those of NV12 behind the RGB that is made of them."""
        return self.image + aligned(self.rgb) if layout == "nv12" else self.image

    def downloaded(self, layout: str, on_device: bool, pixels: int) -> int:
        """Bytes of what is downloaded, from the slot's first one on.

        Args:
            layout: of the pixels.
            on_device: whether they came from there.
            pixels: bytes of them.
        """
        if layout == "nv12":
            return self.image + self.rgb
        return self.image + pixels if on_device else self.picture

    def needs(self, layout: str, on_device: bool, pixels: int) -> SlotSize:
        """The slot that such an image needs; arguments as for :meth:`downloaded`."""
        back = self.downloaded(layout, on_device, pixels)
        return SlotSize(self.source(layout) + pixels, max(back, 0 if on_device else pixels))

    @property
    def any_image(self) -> SlotSize:
        """The slot for any image of this size: RGB, RGBA on the device, NV12 with padded rows.

        So the first one of a kind allocates nothing, and images that take turns share slots.
        """
        height, width = self.size
        padded = -(-width // _PITCH) * _PITCH * (height + -(-height // 2))
        rgba = self.needs("rgba", True, 4 * height * width)
        return rgba.with_room_for(self.needs("nv12", True, padded))


@dataclass(slots=True, eq=False)
class Slot:
    """Memory and events of one image. ``open`` ends when its pool is closed."""

    memory: DeviceMemory
    host: HostMemory
    uploaded: Event
    computed: Event
    done: Event
    _owned: ExitStack
    open: bool = True

    @classmethod
    def make(cls, device: Device, size: "SlotSize") -> "Slot":
        """Allocate a slot of this size."""
        with ExitStack() as owned:
            keep = owned.enter_context
            slot = cls(
                memory=keep(device.allocate(size.device)),
                host=keep(device.allocate_host(size.host)),
                uploaded=keep(device.event()),
                computed=keep(device.event()),
                done=keep(device.event()),
                _owned=owned,
            )
            slot._owned = owned.pop_all()
        return slot

    def fits(self, size: "SlotSize") -> bool:
        """Whether so many bytes fit."""
        return self.memory.size >= size.device and len(self.host.array) >= size.host

    def close(self) -> None:
        """Free everything; nothing may be under way."""
        self.open = False
        self._owned.close()


@dataclass(slots=True)
class SlotPool(Closing):
    """Slots that are free, and all there are."""

    device: Device
    free: list[Slot] = field(default_factory=list)
    used: list[Slot] = field(default_factory=list)

    def take(self, size: SlotSize) -> Slot:
        """A slot of so many bytes at least; allocates one if none is free."""
        fitting = [slot for slot in self.free if slot.fits(size)]
        if fitting:
            slot = fitting[0]
            self.free.remove(slot)
        else:
            self.drop_free()  # of another size
            slot = Slot.make(self.device, size)
        self.used.append(slot)
        return slot

    def give_back(self, slot: Slot) -> None:
        """Take a slot back whose image is done."""
        if slot.open:
            self.used.remove(slot)
            self.free.append(slot)

    def discard(self, slot: Slot) -> None:
        """Free a slot whose image has failed; none of its work may still be under way."""
        if slot.open:
            self.used.remove(slot)
            slot.close()

    def drop_free(self) -> None:
        """Free what no image uses."""
        while self.free:
            self.free.pop().close()

    @property
    def bytes(self) -> int:
        """Device memory of all."""
        return sum(slot.memory.size for slot in (*self.free, *self.used))

    def close(self) -> None:
        """Free everything; nothing may be under way."""
        self.drop_free()
        while self.used:
            self.used.pop().close()
