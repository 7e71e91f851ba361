"""What the pipeline asks of a device.

Everything is asynchronous on a stream unless it says otherwise. Addresses are plain integers, so
that a kernel, ONNX Runtime, TensorRT, PyCUDA, CuPy and torch understand each other without a copy.
A device that keeps its memory on the host runs the same pipeline in the tests, and one that writes
down what it was asked for shows what waits for what.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from ..kernels import Launch

if TYPE_CHECKING:
    from typing_extensions import Self  # of typing from Python 3.11 on

__all__ = [
    "ALIGNMENT",
    "Device",
    "DeviceMemory",
    "Event",
    "Graph",
    "HostMemory",
    "Owned",
    "Stream",
]

#: What every library asks of an address. TensorRT's manual asks for 256 bytes; its check of the
#: memory that a context works in has asked for 512 ("must be aligned on 512 byte boundary").
ALIGNMENT: Final = 512


class Owned(Protocol):
    """Something with one owner, who closes it. Closing twice is fine."""

    def close(self) -> None: ...

    def __enter__(self) -> "Self": ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class DeviceMemory(Owned, Protocol):
    """Bytes on the device; freed by its owner, after the work on it is done."""

    @property
    def address(self) -> int:
        """Address of the first byte; a multiple of ALIGNMENT."""

    @property
    def size(self) -> int:
        """Bytes."""


class HostMemory(Owned, Protocol):
    """Page-locked bytes on the host, which the device copies from and to by itself."""

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        """The bytes, [size]. Not to be touched while a copy is under way."""


class Stream(Owned, Protocol):
    """Work in order."""

    @property
    def handle(self) -> int:
        """The CUstream, for other libraries."""

    def synchronize(self) -> None:
        """Make the host wait until all work given to the stream is done."""


class Event(Owned, Protocol):
    """A point in a stream."""

    def synchronize(self) -> None:
        """Make the host wait until the point is reached."""

    def since(self, earlier: "Event") -> float:
        """Milliseconds between two points that are reached, both with timing."""


class Graph(Owned, Protocol):
    """Work that was captured, to be launched as one."""

    def launch(self, stream: Stream) -> None: ...


class Device(Owned, Protocol):
    """One GPU, in its primary context.

    Raises:
        DeviceError: what CUDA said, in a sentence.
        OutOfDeviceMemory: from :meth:`allocate`, with what was asked for and what is free.
    """

    @property
    def name(self) -> str:
        """The device's name for people, such as ``"NVIDIA GeForce RTX 4090"``."""

    @property
    def compute_capability(self) -> tuple[int, int]: ...

    @property
    def dlpack(self) -> tuple[int, int]:
        """Type and number of the device as DLPack has them: (2, n) is CUDA's device n."""

    def current(self) -> AbstractContextManager[None]:
        """Within it, libraries that work in this thread's current context work on this device.

        What was current before is so again afterwards, whatever they have made current.
        """

    def reaches(self, address: int) -> bool:
        """Whether a kernel may use this address, which another library allocated."""

    def memory(self) -> tuple[int, int]:
        """Bytes that are free, and bytes in all."""

    def allocate(self, size: int) -> DeviceMemory:
        """Allocate memory, at least one byte, with undefined content. Does not synchronise."""

    def allocate_host(self, size: int) -> HostMemory: ...

    def stream(self) -> Stream:
        """A new one, which waits for no other."""

    def event(self, *, timing: bool = False) -> Event: ...

    def upload(self, target: int, source: HostMemory, size: int, stream: Stream) -> None:
        """Copy the first ``size`` bytes of ``source`` to the address ``target``."""

    def download(self, target: HostMemory, source: int, size: int, stream: Stream) -> None: ...

    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        """Copy from device to device."""

    def fill(self, target: int, byte: int, size: int, stream: Stream) -> None: ...

    def launch(self, launch: Launch, stream: Stream) -> None:
        """Run a kernel of :mod:`escnet_runtime.kernels`, compiled when it is first used.

        Raises:
            DeviceError: also what the compiler said.
        """

    def prepare(self, *kernels: str) -> None:
        """Compile and load kernels now, so that no launch has to."""

    def record(self, event: Event, stream: Stream) -> None: ...

    def wait(self, stream: Stream, event: Event) -> None:
        """Make ``stream`` wait for ``event``; the host does not."""

    def capture(self, stream: Stream, work: Callable[[], Any]) -> Graph:
        """Capture what ``work`` gives to ``stream``, in thread-local mode, without running it.

        Raises:
            DeviceError: something in it cannot be captured; the stream is usable again.
        """
