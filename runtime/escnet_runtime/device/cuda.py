"""A GPU through CUDA's driver interface.

It works in the primary context of the GPU, the one that PyTorch, CuPy, ONNX Runtime and PyCUDA's
``autoprimaryctx`` use, so addresses, streams and events of all of them mean the same. Every call
makes that context the current one and puts back what was current before: any thread may call, and a
caller with a context of its own keeps it.

The context is held until the device is closed and nothing refers to what was made in it.

A forked child has none of it: CUDA does not work there, and what its parent made is freed by the
parent alone.
"""

import ctypes
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from cuda.bindings import driver

from ..errors import DeviceError, OutOfDeviceMemory
from ..kernels import Launch
from ..nvidia import require_gpu
from .base import ALIGNMENT, Event, Graph, HostMemory, Stream
from .compile import KernelCompiler, nvrtc_version

if TYPE_CHECKING:
    from typing_extensions import Self  # of typing from Python 3.11 on

__all__ = ["CudaDevice"]

_SUCCESS: Final = driver.CUresult.CUDA_SUCCESS
_OUT_OF_MEMORY: Final = driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY
_ATTRIBUTE: Final = driver.CUdevice_attribute
_POINTER: Final = driver.CUpointer_attribute
_CAPTURE: Final = driver.CUstreamCaptureMode
_DLPACK_CUDA: Final = 2  # dlpack.h: kDLCUDA
_NAME_BYTES: Final = 256


def _call(function: Any, *arguments: Any) -> Any:
    """What a function of the driver gives besides its status.

    Raises:
        OutOfDeviceMemory: kernels, graphs and launches take some, too.
        DeviceError: any other failure.
    """
    status, *values = function(*arguments)
    if status != _SUCCESS:
        kind = OutOfDeviceMemory if status == _OUT_OF_MEMORY else DeviceError
        raise kind(f"{function.__name__} fails: {_explained(status)}")
    return values[0] if len(values) == 1 else tuple(values)


def _explained(status: Any) -> str:
    failed, text = driver.cuGetErrorString(status)
    said = text.decode() if failed == _SUCCESS else "unknown"
    return f"{said} ({getattr(status, 'name', int(status))})"


class _Context:
    """The primary context of a GPU, held until nothing refers to this object."""

    def __init__(self, ordinal: int) -> None:
        _call(driver.cuInit, 0)
        count = _call(driver.cuDeviceGetCount)
        if not 0 <= ordinal < count:
            raise DeviceError(f"got device {ordinal}; expected one of the {count} that are visible")
        self.device = _call(driver.cuDeviceGet, ordinal)
        self.handle = _call(driver.cuDevicePrimaryCtxRetain, self.device)
        release = weakref.finalize(self, driver.cuDevicePrimaryCtxRelease, self.device)
        release.atexit = False  # the process ends with its context
        self._process = os.getpid()

    @property
    def elsewhere(self) -> bool:
        """Whether this is a forked child, where the driver refuses every call."""
        return os.getpid() != self._process

    def __enter__(self) -> None:
        _call(driver.cuCtxPushCurrent, self.handle)

    def __exit__(self, *_: object) -> None:
        driver.cuCtxPopCurrent()  # fails only if the context is lost, which the call has said


@contextmanager
def _uncaptured() -> Iterator[None]:
    """Let this thread do what is no work of a stream while it captures one."""
    before = _call(
        driver.cuThreadExchangeStreamCaptureMode, _CAPTURE.CU_STREAM_CAPTURE_MODE_RELAXED
    )
    try:
        yield
    finally:
        driver.cuThreadExchangeStreamCaptureMode(before)


@contextmanager
def _quiet_after(error: object) -> Iterator[None]:
    """After an error that broke the context, closing fails too: the first one tells more."""
    try:
        yield
    except DeviceError:
        if error is None:
            raise


class _Owned:
    """A thing of the driver's with one owner.

    One that nobody closes is freed with a ResourceWarning when nothing refers to it any more.
    """

    def __init__(self, context: _Context, kind: str, thing: Any, free: Any) -> None:
        self._context, self._kind, self._thing, self._free = context, kind, thing, free
        self._guard = weakref.finalize(self, _free_forgotten, context, kind, free, thing)
        self._guard.atexit = False  # the process ends with its memory

    def close(self) -> None:
        if self._guard.detach() is not None and not self._context.elsewhere:
            # Whoever drops a result while this thread captures a graph does not mean to break it.
            with self._context, _uncaptured():
                _call(self._free, self._thing)

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with _quiet_after(kind):
            self.close()

    def open_thing(self) -> Any:
        """The driver's own; raises DeviceError if it is closed."""
        if not self._guard.alive:
            raise DeviceError(f"got {self._kind} that is closed; use it before its owner closes it")
        return self._thing


def _free_forgotten(context: _Context, kind: str, free: Any, thing: Any) -> None:
    if context.elsewhere:
        return
    with context, _uncaptured():  # Python may collect it in the middle of anything
        free(thing)
    warnings.warn(f"{kind} was never closed; it is freed now", ResourceWarning, stacklevel=2)


class _CudaMemory(_Owned):
    def __init__(self, context: _Context, address: Any, size: int) -> None:
        super().__init__(context, f"device memory of {size} bytes", address, driver.cuMemFree)
        self._size = size

    @property
    def address(self) -> int:
        return _aligned(int(self.open_thing()))

    @property
    def size(self) -> int:
        return self._size


class _CudaHostMemory(_Owned):
    def __init__(self, context: _Context, address: Any, size: int) -> None:
        super().__init__(context, f"host memory of {size} bytes", address, driver.cuMemFreeHost)
        self._array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(address)))

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        self.open_thing()
        return self._array


class _CudaStream(_Owned):
    def __init__(self, context: _Context) -> None:
        flag = driver.CUstream_flags.CU_STREAM_NON_BLOCKING  # waits for no default stream
        with context:
            stream = _call(driver.cuStreamCreate, flag)
        super().__init__(context, "a stream", stream, driver.cuStreamDestroy)

    @property
    def handle(self) -> int:
        return int(self.open_thing())

    def synchronize(self) -> None:
        with self._context:
            _call(driver.cuStreamSynchronize, self.open_thing())


class _CudaEvent(_Owned):
    def __init__(self, context: _Context, timing: bool) -> None:
        flags = driver.CUevent_flags
        flag = flags.CU_EVENT_DEFAULT if timing else flags.CU_EVENT_DISABLE_TIMING
        with context:
            event = _call(driver.cuEventCreate, flag)
        super().__init__(context, "an event", event, driver.cuEventDestroy)

    def synchronize(self) -> None:
        with self._context:
            _call(driver.cuEventSynchronize, self.open_thing())

    def since(self, earlier: Event) -> float:
        with self._context:
            first, last = _event(earlier).open_thing(), self.open_thing()
            return float(_call(driver.cuEventElapsedTime, first, last))


class _CudaGraph(_Owned):
    def __init__(self, context: _Context, graph: Any) -> None:
        with context:
            executable = _call(driver.cuGraphInstantiate, graph, 0)
        super().__init__(context, "a graph", executable, driver.cuGraphExecDestroy)

    def launch(self, stream: Stream) -> None:
        with self._context:
            _call(driver.cuGraphLaunch, self.open_thing(), stream.handle)


class CudaDevice:
    """One NVIDIA GPU; see `escnet_runtime.device.base.Device`. Any thread may call it.

    A stream may be one of another library: only its ``handle`` is used.
    """

    def __init__(self, ordinal: int = 0, *, cache: Path | None = None) -> None:
        """Open a GPU.

        Args:
            ordinal: its number among those that CUDA_VISIBLE_DEVICES shows.
            cache: folder of compiled kernels; None stands for ``$ESCNET_CACHE`` or the user's.

        Raises:
            DeviceError: there is no such GPU, or no driver, or one that is too old.
        """
        _require_driver(require_gpu().driver)
        self._context: _Context | None = _Context(ordinal)
        self._ordinal, self._cache = ordinal, cache
        self._lock = threading.RLock()
        self._compiler: KernelCompiler | None = None
        self._kernels: dict[str, tuple[Any, Any]] = {}  # module and function

    @property
    def name(self) -> str:
        name: bytes = _call(driver.cuDeviceGetName, _NAME_BYTES, self._open().device)
        return name.partition(b"\0")[0].decode()

    @property
    def compute_capability(self) -> tuple[int, int]:
        return (
            self._attribute(_ATTRIBUTE.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
            self._attribute(_ATTRIBUTE.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
        )

    @property
    def dlpack(self) -> tuple[int, int]:
        return _DLPACK_CUDA, self._ordinal

    @contextmanager
    def current(self) -> Iterator[None]:
        context = self._open()
        before = _call(driver.cuCtxGetCurrent)
        try:
            with context:
                yield
        finally:
            # A library that has set another one took the place of ours or of the caller's.
            if int(_call(driver.cuCtxGetCurrent)) != int(before):
                _call(driver.cuCtxSetCurrent, before)

    def reaches(self, address: int) -> bool:
        context = self._open()
        with context:
            unknown, where = driver.cuPointerGetAttribute(
                _POINTER.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address
            )
            if unknown != _SUCCESS or int(where) != self._ordinal:
                return False
            # Memory of a pool belongs to no context; one of another context is out of reach.
            unknown, owner = driver.cuPointerGetAttribute(
                _POINTER.CU_POINTER_ATTRIBUTE_CONTEXT, address
            )
        return unknown != _SUCCESS or int(owner) in (0, int(context.handle))

    def memory(self) -> tuple[int, int]:
        with self._open():
            free, total = _call(driver.cuMemGetInfo)
        return int(free), int(total)

    def allocate(self, size: int) -> _CudaMemory:
        context = self._open()
        with context:
            status, address = driver.cuMemAlloc(max(size, 1))
            if status == _SUCCESS and int(address) != _aligned(int(address)):
                # CUDA promises 256 bytes, though every driver seen gives more.
                _call(driver.cuMemFree, address)
                status, address = driver.cuMemAlloc(size + ALIGNMENT)
        if status == _OUT_OF_MEMORY:
            free, total = self.memory()
            raise OutOfDeviceMemory(
                f"got a request for {size} bytes of device memory; {free} of {total} are free"
            )
        if status != _SUCCESS:
            raise DeviceError(f"cuMemAlloc of {size} bytes fails: {_explained(status)}")
        return _CudaMemory(context, address, size)

    def allocate_host(self, size: int) -> _CudaHostMemory:
        context = self._open()
        with context:
            status, address = driver.cuMemAllocHost(max(size, 1))
        if status != _SUCCESS:  # also for want of memory, which a smaller chunk would not mend
            raise DeviceError(
                f"cuMemAllocHost of {size} bytes on the host fails: {_explained(status)}"
            )
        return _CudaHostMemory(context, address, size)

    def stream(self) -> _CudaStream:
        return _CudaStream(self._open())

    def event(self, *, timing: bool = False) -> _CudaEvent:
        return _CudaEvent(self._open(), timing)

    def upload(self, target: int, source: HostMemory, size: int, stream: Stream) -> None:
        with self._open():
            _call(driver.cuMemcpyHtoDAsync, target, _address(source, size), size, stream.handle)

    def download(self, target: HostMemory, source: int, size: int, stream: Stream) -> None:
        with self._open():
            _call(driver.cuMemcpyDtoHAsync, _address(target, size), source, size, stream.handle)

    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        with self._open():
            _call(driver.cuMemcpyDtoDAsync, target, source, size, stream.handle)

    def fill(self, target: int, byte: int, size: int, stream: Stream) -> None:
        with self._open():
            _call(driver.cuMemsetD8Async, target, byte, size, stream.handle)

    def launch(self, launch: Launch, stream: Stream) -> None:
        self.prepare(launch.kernel)
        _, function = self._kernels[launch.kernel]
        parameters = launch.addresses()  # of the arguments, which the driver copies
        shape = (*launch.grid, *launch.block)
        with self._open():
            _call(
                driver.cuLaunchKernel,
                *(function, *shape, 0, stream.handle, ctypes.addressof(parameters), 0),
            )

    def prepare(self, *kernels: str) -> None:
        with self._lock:
            for kernel in kernels:
                if kernel not in self._kernels:
                    self._kernels[kernel] = self._load(kernel)

    def record(self, event: Event, stream: Stream) -> None:
        with self._open():
            _call(driver.cuEventRecord, _event(event).open_thing(), stream.handle)

    def wait(self, stream: Stream, event: Event) -> None:
        with self._open():
            _call(driver.cuStreamWaitEvent, stream.handle, _event(event).open_thing(), 0)

    def capture(self, stream: Stream, work: Callable[[], Any]) -> Graph:
        context = self._open()
        mode = _CAPTURE.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        with context:
            _call(driver.cuStreamBeginCapture, stream.handle, mode)
        try:
            work()
        except BaseException:
            with context:
                failed, graph = driver.cuStreamEndCapture(stream.handle)
                if failed == _SUCCESS:
                    driver.cuGraphDestroy(graph)
            raise
        with context:
            graph = _call(driver.cuStreamEndCapture, stream.handle)
            try:
                return _CudaGraph(context, graph)
            except OutOfDeviceMemory as error:  # a graph takes memory that its work does not
                raise DeviceError(f"there is no room for a graph: {error}") from error
            finally:
                driver.cuGraphDestroy(graph)

    def close(self) -> None:
        """Wait for all work and let go of the kernels and the context. Closing twice is fine."""
        with self._lock:
            context, self._context = self._context, None
            if context is not None and not context.elsewhere:
                with context:
                    _call(driver.cuCtxSynchronize)
                    for module, _ in self._kernels.values():
                        _call(driver.cuModuleUnload, module)
                self._kernels.clear()

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with _quiet_after(kind):
            self.close()

    def _open(self) -> _Context:
        context = self._context
        if context is None:
            raise DeviceError("got a device that is closed; open it anew")
        return context

    def _attribute(self, attribute: Any) -> int:
        return int(_call(driver.cuDeviceGetAttribute, attribute, self._open().device))

    def _load(self, kernel: str) -> tuple[Any, Any]:
        """Compile a kernel, or take it from the cache, and load it."""
        context = self._open()
        if self._compiler is None:
            major, minor = self.compute_capability
            self._compiler = KernelCompiler(10 * major + minor, self._cache)
        code = self._compiler.compile(kernel)
        with context, _uncaptured():
            try:
                module = _call(driver.cuModuleLoadData, code)
                function = _call(driver.cuModuleGetFunction, module, kernel.encode())
                _call(driver.cuFuncLoad, function)  # now, not when it is first launched
            except OutOfDeviceMemory:
                raise
            except DeviceError as error:
                version = _call(driver.cuDriverGetVersion)
                raise DeviceError(
                    f"the driver (CUDA {_version(version)}) does not load {kernel} as NVRTC "
                    f"{nvrtc_version()} compiled it: {error}"
                ) from error
        return module, function


def _require_driver(driver_version: str) -> None:
    """A driver runs programs of its own major version of CUDA and older ones."""
    need = driver.CUDA_VERSION // 1000
    if int(driver_version.partition(".")[0]) < need:
        raise DeviceError(
            f"got a driver of CUDA {driver_version}; cuda-bindings "
            f"{_version(driver.CUDA_VERSION)} needs one of CUDA {need}.0 or newer: update the "
            f"driver, or install cuda-bindings<{need} and its NVRTC"
        )


def _aligned(address: int) -> int:
    return -(-address // ALIGNMENT) * ALIGNMENT


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _event(one: Event) -> _CudaEvent:
    if not isinstance(one, _CudaEvent):
        raise DeviceError(f"got {one!r}; expected an event of this device")
    return one


def _address(memory: HostMemory, size: int) -> int:
    if not 0 <= size <= len(memory.array):
        raise DeviceError(f"got {size} bytes to copy; the host memory has {len(memory.array)}")
    return int(memory.array.ctypes.data)
