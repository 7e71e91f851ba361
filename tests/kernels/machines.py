"""Where a kernel runs in a test: on the CPU thread by thread, or on a GPU."""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from escnet_runtime.device.arrays import DeviceArray
from escnet_runtime.device.base import Device
from escnet_runtime.kernels import FloatType, Launch, kernel_source
from tests.kernels.host import HostCompiler, HostKernel

__all__ = [
    "FLOAT_TYPES",
    "Array",
    "Buffer",
    "GpuMachine",
    "Guarded",
    "HostMachine",
    "Machine",
    "stored",
]

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

FLOAT_TYPES: tuple[FloatType, ...] = ("float32", "float16", "bfloat16")

_GUARD = 256  # bytes before and behind an array; a kernel that writes there is wrong


class Buffer(Protocol):
    """Bytes in the memory of a machine."""

    @property
    def address(self) -> int: ...

    def read(self) -> Bytes: ...


class Machine(Protocol):
    """Memory and launches."""

    def buffer(self, content: Bytes) -> Buffer:
        """A copy of the bytes."""
        ...

    def launch(self, launch: Launch, *, seed: int = 0) -> None:
        """Run a kernel to its end. The seed orders threads where that can be chosen."""
        ...


class Guarded:
    """An array in a machine's memory, with guards around it."""

    def __init__(self, machine: Machine, array: Array) -> None:
        self._shape, self._dtype, self._size = array.shape, array.dtype, array.nbytes
        guard = np.full(_GUARD, 0xC3, np.uint8)
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._buffer = machine.buffer(np.concatenate([guard, content, guard]))
        self.address = self._buffer.address + _GUARD

    def read(self) -> Array:
        """What it holds now; fails if something was written beside it."""
        content = self._buffer.read()
        inside = content[_GUARD : _GUARD + self._size]
        for guard in (content[:_GUARD], content[_GUARD + self._size :]):
            assert (guard == 0xC3).all(), "the kernel wrote outside its array"
        return inside.copy().view(self._dtype).reshape(self._shape)


class _HostBuffer:
    def __init__(self, content: Bytes) -> None:
        self._content = content.copy()
        self.address = int(self._content.ctypes.data)

    def read(self) -> Bytes:
        return self._content


class HostMachine:
    """The CPU. ``source`` replaces the shipped source of the kernels, for mutants."""

    def __init__(self, compiler: HostCompiler, source: str | None = None) -> None:
        self._compiler, self._source = compiler, source
        self._kernels: dict[str, HostKernel] = {}

    def buffer(self, content: Bytes) -> Buffer:
        return _HostBuffer(content)

    def prepare(self, kernel: str) -> None:
        """Compile a kernel, unless that is done."""
        if kernel not in self._kernels:
            source = self._source or kernel_source(kernel)
            self._kernels[kernel] = self._compiler.compile(kernel, source)

    def launch(self, launch: Launch, *, seed: int = 0) -> None:
        self.prepare(launch.kernel)
        self._kernels[launch.kernel].launch(launch, seed=seed)


class _GpuBuffer:
    def __init__(self, device: Device, content: Bytes) -> None:
        self._device = device
        memory = device.allocate(content.nbytes)
        self._array = DeviceArray.of(device, memory, content.shape, np.uint8)
        self.address = memory.address
        with device.allocate_host(content.nbytes) as host, device.stream() as stream:
            host.array[:] = content
            device.upload(memory.address, host, content.nbytes, stream)
            stream.synchronize()

    def read(self) -> Bytes:
        return self._array.copy_to_host()


class GpuMachine:
    """The first GPU, by the device layer."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def buffer(self, content: Bytes) -> Buffer:
        return _GpuBuffer(self.device, content)

    def launch(self, launch: Launch, *, seed: int = 0) -> None:
        with self.device.stream() as stream:
            self.device.launch(launch, stream)
            stream.synchronize()


def stored(scores: Floats, float_type: FloatType) -> tuple[Array, Floats]:
    """Scores rounded to a type: as they lie in memory, and their float32 values."""
    if float_type == "float32":
        return scores, scores
    if float_type == "float16":
        with np.errstate(over="ignore"):
            half = scores.astype(np.float16)
        return half, half.astype(np.float32)
    upper = (scores.view(np.uint32) >> 16).astype(np.uint16)
    return upper, (upper.astype(np.uint32) << 16).view(np.float32)
