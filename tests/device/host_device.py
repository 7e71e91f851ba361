"""A device on the CPU, for tests of what runs on a device.

`HostDevice` implements the whole of ``escnet_runtime.device.base``. Its memory is memory of this
process, so an address may be read with ctypes, and its kernels are the shipped CUDA sources.

**As lazy as a GPU may be.** Nothing that is given to a stream happens before the host waits for it,
and then only what that wait needs. So a test fails when the host reads a download that it did not
wait for, overwrites an upload that is under way, or when a stream does not wait for the other that
makes its input. With ``lazy=False`` everything happens at once, the other extreme: a test that
passes on both does not depend on how work interleaves.

**As strict as a GPU.** What a new allocation holds is noise. Work on memory that was freed, or past
its end, fails the test with `DeviceFaultError`. While a stream is captured, it cannot be waited for
and nothing is allocated or compiled, and a stream that joins the capture has to come back.

**It writes down what the host asked for**, in `HostDevice.log`, in order::

    ("allocate", bytes), ("allocate_host", bytes), ("free", bytes), ("free_host", bytes),
    ("upload", bytes), ("download", bytes), ("copy", bytes), ("fill", bytes),
    ("prepare", kernel), ("launch", kernel), ("record", stream), ("wait", stream),
    ("capture", operations in the graph), ("graph", operations in the graph),
    ("synchronize", "stream" or "event")

Work that is captured stands in ``graph.log`` instead. `HostDevice.calls` is a shorthand:
``device.calls("upload", "synchronize")`` is the part of the log with those names.
``device.open`` tells what is not closed yet.

A stream may be a borrowed one: its handle is that of a stream made here, or 1 or 2, CUDA's default
streams. `HostDevice.lend` makes an array of NumPy memory of "another library", which kernels may
use. To DLPack the memory is the CPU's, so NumPy takes a ``DeviceArray`` of this device.
"""

import ctypes
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt

from escnet_runtime.device.base import ALIGNMENT, Event, HostMemory, Stream
from escnet_runtime.errors import DeviceError, OutOfDeviceMemory
from escnet_runtime.kernels import Launch
from tests.kernels.machines import HostMachine

__all__ = ["DeviceFaultError", "HostDevice", "Operation"]

_FIRST_HANDLE = 256  # beyond CUDA's default streams
_DEFAULT_STREAMS = (1, 2)  # cuda.h: CU_STREAM_LEGACY, CU_STREAM_PER_THREAD
_NOISE = 0xA5  # as bytes, floats and counts: a value that no test takes for a right one


class DeviceFaultError(AssertionError):
    """Work touched memory that it may not touch."""


class Operation(NamedTuple):
    """What the host asked for."""

    name: str
    detail: int | str


Task = Callable[[], None]
_T = TypeVar("_T")


@dataclass
class _Point:
    """A place in a stream that something was recorded at."""

    stream: "_HostStream | None" = None
    capture: "_Capture | None" = None
    reached: bool = False
    time: float = math.nan


@dataclass(eq=False)
class _Capture:
    """What is captured at the moment."""

    origin: "_HostStream"
    tasks: list[Task] = field(default_factory=list)
    log: list[Operation] = field(default_factory=list)
    streams: "set[_HostStream]" = field(default_factory=set)
    unjoined: "set[_HostStream]" = field(default_factory=set)
    failure: str | None = None


class _Owned:
    """Something that is closed once, and of no use from then on."""

    def __init__(self, device: "HostDevice", kind: str) -> None:
        self._device, self.kind = device, kind
        self.closed = False
        device.open.append(self)

    def __repr__(self) -> str:
        return f"{self.kind}{' (closed)' if self.closed else ''}"

    def close(self) -> None:
        with self._device.lock:
            if not self.closed:
                self.closed = True
                self._device.open.remove(self)
                self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def require_open(self) -> None:
        if self.closed:
            raise DeviceError(f"got a {self.kind} that is closed")

    def _release(self) -> None:
        pass


class _Aligned:
    """Bytes at a multiple of ALIGNMENT, and of no larger power of two."""

    def __init__(self, size: int) -> None:
        self._raw = np.full(size + 2 * ALIGNMENT, _NOISE, np.uint8)
        offset = (ALIGNMENT - self._raw.ctypes.data) % (2 * ALIGNMENT)
        self.bytes: npt.NDArray[np.uint8] = self._raw[offset : offset + size]
        self.address = int(self.bytes.ctypes.data)


class _HostDeviceMemory(_Owned):
    def __init__(self, device: "HostDevice", size: int) -> None:
        super().__init__(device, "device memory")
        self._bytes = _Aligned(size)
        self._size = size

    @property
    def address(self) -> int:
        self.require_open()
        return self._bytes.address

    @property
    def size(self) -> int:
        return self._size

    def holds(self, address: int, size: int) -> bool:
        begin = self._bytes.address
        return begin <= address and address + size <= begin + self._size

    def _release(self) -> None:
        self._bytes.bytes[:] = _NOISE
        self._device.note("free", self._size)


class _HostHostMemory(_Owned):
    def __init__(self, device: "HostDevice", size: int) -> None:
        super().__init__(device, "host memory")
        self._bytes = _Aligned(size).bytes

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        self.require_open()
        return self._bytes

    def _release(self) -> None:
        self._device.note("free_host", len(self._bytes))


class _HostStream(_Owned):
    def __init__(self, device: "HostDevice", number: int) -> None:
        super().__init__(device, "stream")
        self._handle = number
        self.queue: deque[Task] = deque()
        self.capture: _Capture | None = None

    @property
    def handle(self) -> int:
        self.require_open()
        return self._handle

    def synchronize(self) -> None:
        with self._device.lock:
            self.require_open()
            self._device.forbid_in_capture(self.capture, "a stream was waited for")
            self._device.note("synchronize", "stream")
            self.run(until=None)

    def run(self, until: _Point | None) -> None:
        """Do the work up to a point, or all of it."""
        while self.queue and not (until and until.reached):
            self.queue.popleft()()

    def _release(self) -> None:
        self.run(until=None)  # CUDA lets a stream finish that is destroyed


class _HostEvent(_Owned):
    def __init__(self, device: "HostDevice", timing: bool) -> None:
        super().__init__(device, "event")
        self.timing = timing
        self.point: _Point | None = None

    def synchronize(self) -> None:
        with self._device.lock:
            self.require_open()
            point = self.point
            self._device.forbid_in_capture(
                point.capture if point else None, "an event was waited for"
            )
            self._device.note("synchronize", "event")
            if point and point.stream:
                point.stream.run(until=point)

    def since(self, earlier: Event) -> float:
        other = _mine(earlier, _HostEvent)
        with self._device.lock:
            for event in (self, other):
                event.require_open()
                if not event.timing:
                    raise DeviceError("got an event without timing")
                if event.point is None or not event.point.reached:
                    raise DeviceError("got an event that is not reached yet")
            assert self.point is not None
            assert other.point is not None
            return 1000 * (self.point.time - other.point.time)


class _HostGraph(_Owned):
    def __init__(self, device: "HostDevice", capture: _Capture) -> None:
        super().__init__(device, "graph")
        self._tasks = capture.tasks
        self.log = capture.log

    def launch(self, stream: Stream) -> None:
        with self._device.lock:
            self.require_open()
            self._device.give(stream, Operation("graph", len(self.log)), self._run)

    def _run(self) -> None:
        for task in self._tasks:
            task()


class HostDevice:
    """See the module.

    Args:
        machine: compiles and runs the kernels; several devices may share one.
        lazy: whether work waits until the host needs it.
        total: bytes of device memory.
        seed: the order in which the threads of kernels run.
    """

    name = "the CPU, as a device"
    compute_capability = (0, 0)
    dlpack = (1, 0)

    def __init__(
        self, machine: HostMachine, *, lazy: bool = True, total: int = 1 << 30, seed: int = 0
    ) -> None:
        self._machine, self._lazy, self._total, self._seed = machine, lazy, total, seed
        self._prepared: set[str] = set()
        self._captures: dict[int, _Capture] = {}  # by thread
        self._streams: dict[int, _HostStream] = {}
        self._lent: list[npt.NDArray[Any]] = []
        self._entered = threading.local()
        self.lock = threading.RLock()
        self.log: list[Operation] = []
        self.open: list[_Owned] = []
        self.closed = False

    def calls(self, *names: str) -> list[Operation]:
        """The part of the log with these names, in order."""
        return [one for one in self.log if one.name in names]

    def lend(self, array: npt.NDArray[Any]) -> int:
        """The address of an array that another library is said to have allocated."""
        self._lent.append(array)
        return int(array.ctypes.data)

    def is_current(self) -> bool:
        """Whether a library that is called by this thread works here."""
        return bool(getattr(self._entered, "depth", 0))

    # The protocol.

    @contextmanager
    def current(self) -> Iterator[None]:
        self._require_open()
        self._entered.depth = getattr(self._entered, "depth", 0) + 1
        try:
            yield
        finally:
            self._entered.depth -= 1

    def reaches(self, address: int) -> bool:
        with self.lock:
            return self._is_there(address, 1)

    def memory(self) -> tuple[int, int]:
        with self.lock:
            used = sum(_rounded(one.size) for one in self._memories())
            return self._total - used, self._total

    def allocate(self, size: int) -> _HostDeviceMemory:
        with self.lock:
            self._require_open()
            self.forbid_in_capture(self._capture_of_this_thread(), "memory was allocated")
            free, _ = self.memory()
            if _rounded(size) > free:
                raise OutOfDeviceMemory(f"got a request for {size} bytes; {free} are free")
            self.note("allocate", size)
            return _HostDeviceMemory(self, max(size, 1))

    def allocate_host(self, size: int) -> _HostHostMemory:
        with self.lock:
            self._require_open()
            self.forbid_in_capture(self._capture_of_this_thread(), "memory was allocated")
            self.note("allocate_host", size)
            return _HostHostMemory(self, size)

    def stream(self) -> _HostStream:
        with self.lock:
            self._require_open()
            return self._new_stream(_FIRST_HANDLE + len(self._streams))

    def event(self, *, timing: bool = False) -> _HostEvent:
        with self.lock:
            self._require_open()
            return _HostEvent(self, timing)

    def upload(self, target: int, source: HostMemory, size: int, stream: Stream) -> None:
        _part(source, size)

        def task() -> None:
            self._bytes(target, size)[:] = _part(source, size)

        self.give(stream, Operation("upload", size), task)

    def download(self, target: HostMemory, source: int, size: int, stream: Stream) -> None:
        _part(target, size)

        def task() -> None:
            _part(target, size)[:] = self._bytes(source, size)

        self.give(stream, Operation("download", size), task)

    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        def task() -> None:
            self._bytes(target, size)[:] = self._bytes(source, size)

        self.give(stream, Operation("copy", size), task)

    def fill(self, target: int, byte: int, size: int, stream: Stream) -> None:
        def task() -> None:
            self._bytes(target, size)[:] = byte

        self.give(stream, Operation("fill", size), task)

    def launch(self, launch: Launch, stream: Stream) -> None:
        # As CUDA does, take the arguments as they are now.
        taken = Launch(
            kernel=launch.kernel,
            grid=launch.grid,
            block=launch.block,
            arguments=tuple(type(one).from_buffer_copy(one) for one in launch.arguments),
        )

        def task() -> None:
            for one in taken.arguments:
                if isinstance(one, ctypes.c_void_p) and one.value:
                    self._bytes(one.value, 1)
            self._machine.launch(taken, seed=self._seed)

        with self.lock:
            self._compile([launch.kernel])
            self.give(stream, Operation("launch", launch.kernel), task)

    def prepare(self, *kernels: str) -> None:
        with self.lock:
            self._compile(kernels)

    def record(self, event: Event, stream: Stream) -> None:
        mine, on = _mine(event, _HostEvent), self._stream(stream)
        with self.lock:
            mine.require_open()
            point = mine.point = _Point(stream=on, capture=on.capture)

            def task() -> None:
                point.reached, point.time = True, time.perf_counter()

            self.give(stream, Operation("record", on.handle), task)

    def wait(self, stream: Stream, event: Event) -> None:
        on, point = self._stream(stream), _mine(event, _HostEvent).point
        with self.lock:
            if point and point.capture and point.capture is not on.capture:
                if on.capture:
                    raise DeviceError("a captured stream cannot wait for another capture")
                if point.capture not in self._captures.values():
                    raise DeviceError("the event was recorded in a capture that has ended")
                point.capture.streams.add(on)
                on.capture = point.capture
            elif on.capture and point and not point.capture:
                # The work before it is none of the graph's.
                self._fail(on.capture, "a captured stream waited for one that is not captured")

            def task() -> None:
                if point and point.stream and not point.reached:
                    point.stream.run(until=point)

            self.give(stream, Operation("wait", on.handle), task)
            if on.capture and point and point.stream:
                on.capture.unjoined.discard(point.stream)

    def capture(self, stream: Stream, work: Callable[[], Any]) -> _HostGraph:
        on = self._stream(stream)
        with self.lock:
            on.require_open()
            if on.capture:
                raise DeviceError("the stream is being captured already")
            capture = _Capture(origin=on, streams={on})
            self._captures[threading.get_ident()] = on.capture = capture
        try:
            work()
        finally:
            with self.lock:
                del self._captures[threading.get_ident()]
                for one in capture.streams:
                    one.capture = None
        if capture.failure:
            raise DeviceError(capture.failure)
        if capture.unjoined:
            raise DeviceError("the capture ended while a stream that joined it had not come back")
        self.note("capture", len(capture.log))
        return _HostGraph(self, capture)

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What its parts need.

    def note(self, name: str, detail: int | str) -> None:
        self.log.append(Operation(name, detail))

    def give(self, stream: Stream, operation: Operation, task: Task) -> None:
        """Give work to a stream, or to the graph that is captured from it."""
        on = self._stream(stream)
        with self.lock:
            self._require_open()
            on.require_open()
            if on.capture:
                on.capture.log.append(operation)
                on.capture.tasks.append(task)
                if on is not on.capture.origin:
                    on.capture.unjoined.add(on)
                return
            self.log.append(operation)
            on.queue.append(task)
            if not self._lazy:
                on.run(until=None)

    def forbid_in_capture(self, capture: _Capture | None, what: str) -> None:
        if capture:
            self._fail(capture, f"{what} while a graph was captured")

    def _fail(self, capture: _Capture, message: str) -> None:
        capture.failure = message
        raise DeviceError(message)

    def _capture_of_this_thread(self) -> _Capture | None:
        return self._captures.get(threading.get_ident())

    def _compile(self, kernels: Iterable[str]) -> None:
        for kernel in kernels:
            if kernel not in self._prepared:
                self.forbid_in_capture(self._capture_of_this_thread(), f"{kernel} was compiled")
                self._machine.prepare(kernel)
                self._prepared.add(kernel)
                self.note("prepare", kernel)

    def _memories(self) -> list[_HostDeviceMemory]:
        return [one for one in self.open if isinstance(one, _HostDeviceMemory)]

    def _is_there(self, address: int, size: int) -> bool:
        lent = [(int(one.ctypes.data), one.nbytes) for one in self._lent]
        return any(one.holds(address, size) for one in self._memories()) or any(
            begin <= address and address + size <= begin + length for begin, length in lent
        )

    def _stream(self, stream: Stream) -> _HostStream:
        """The stream itself; a borrowed one is known by its handle."""
        if isinstance(stream, _HostStream):
            return stream
        handle = stream.handle
        if handle in _DEFAULT_STREAMS and handle not in self._streams:
            self.open.remove(self._new_stream(handle))
        if handle not in self._streams:
            raise DeviceError(f"got stream {handle:#x}; expected one that this device made")
        return self._streams[handle]

    def _new_stream(self, handle: int) -> _HostStream:
        made = self._streams[handle] = _HostStream(self, handle)
        return made

    def _bytes(self, address: int, size: int) -> npt.NDArray[np.uint8]:
        """The bytes at an address, which have to lie in one allocation that is there."""
        if not self._is_there(address, size):
            raise DeviceFaultError(f"{size} bytes at {address:#x} are not allocated, or were freed")
        if not size:
            return np.empty(0, np.uint8)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def _require_open(self) -> None:
        if self.closed:
            raise DeviceError("got a device that is closed")


def _rounded(size: int) -> int:
    return -(-max(size, 1) // ALIGNMENT) * ALIGNMENT


def _part(memory: HostMemory, size: int) -> npt.NDArray[np.uint8]:
    if not 0 <= size <= len(memory.array):
        raise DeviceError(f"got {size} bytes to copy; the host memory has {len(memory.array)}")
    return memory.array[:size]


def _mine(one: object, kind: type[_T]) -> _T:
    if not isinstance(one, kind):
        raise DeviceError(f"got {one!r}; expected something that this device made")
    return one
