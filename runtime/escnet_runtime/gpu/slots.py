"""What an image on its way needs beside the arena: its pixels before, its picture after.

A slot belongs to one image from its upload to its result. With two of them one image is uploaded
and another downloaded while a third computes.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from ..device.base import Device, DeviceMemory, Event, HostMemory

__all__ = ["Slot", "SlotPool"]


@dataclass(slots=True, eq=False)
class Slot:
    """Memory and events of one image. ``open`` ends when its pool is closed."""

    pixels: DeviceMemory
    picture: DeviceMemory
    upload: HostMemory
    download: HostMemory
    uploaded: Event
    computed: Event
    done: Event
    _owned: ExitStack
    open: bool = True

    @classmethod
    def make(cls, device: Device, pixels: int, picture: int) -> "Slot":
        """For images and pictures of so many bytes."""
        with ExitStack() as owned:
            keep = owned.enter_context
            slot = cls(
                pixels=keep(device.allocate(pixels)),
                picture=keep(device.allocate(picture)),
                upload=keep(device.allocate_host(pixels)),
                download=keep(device.allocate_host(picture)),
                uploaded=keep(device.event()),
                computed=keep(device.event()),
                done=keep(device.event()),
                _owned=owned,
            )
            slot._owned = owned.pop_all()
        return slot

    def fits(self, pixels: int, picture: int) -> bool:
        """Whether images and pictures of so many bytes fit."""
        return len(self.upload.array) >= pixels and len(self.download.array) >= picture

    def close(self) -> None:
        """Free everything; nothing may be under way."""
        self.open = False
        self._owned.close()


@dataclass(slots=True)
class SlotPool:
    """Slots that are free, and all there are."""

    device: Device
    free: list[Slot] = field(default_factory=list)
    used: list[Slot] = field(default_factory=list)

    def take(self, pixels: int, picture: int) -> Slot:
        """A slot for images and pictures of so many bytes; allocates one if none is free."""
        fitting = [slot for slot in self.free if slot.fits(pixels, picture)]
        if fitting:
            slot = fitting[0]
            self.free.remove(slot)
        else:
            self.drop_free()  # of another size
            slot = Slot.make(self.device, pixels, picture)
        self.used.append(slot)
        return slot

    def give_back(self, slot: Slot) -> None:
        """Its image is done."""
        if slot.open:
            self.used.remove(slot)
            self.free.append(slot)

    def discard(self, slot: Slot) -> None:
        """Its image has failed; nothing of it may be under way."""
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
        return sum(slot.pixels.size + slot.picture.size for slot in (*self.free, *self.used))

    def close(self) -> None:
        """Free everything; nothing may be under way."""
        self.drop_free()
        while self.used:
            self.used.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
