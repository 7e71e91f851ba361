"""Where a kernel runs in a test: on the CPU thread by thread, or on a GPU."""

import ctypes
from functools import cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

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
    def __init__(self, content: Bytes) -> None:
        import torch

        self._tensor = torch.from_numpy(content.copy()).cuda()
        self.address = self._tensor.data_ptr()

    def read(self) -> Bytes:
        content: Bytes = self._tensor.cpu().numpy()
        return content


class GpuMachine:
    """The current device of PyTorch, which lends its memory and its stream."""

    def buffer(self, content: Bytes) -> Buffer:
        return _GpuBuffer(content)

    def launch(self, launch: Launch, *, seed: int = 0) -> None:
        import torch

        self.enqueue(launch)
        torch.cuda.synchronize()

    def enqueue(self, launch: Launch) -> None:
        """Launch on PyTorch's current stream, without waiting."""
        import torch

        function = _function(launch.kernel)  # loads the driver's library
        from cuda.bindings import driver

        stream = torch.cuda.current_stream().cuda_stream
        parameters = launch.addresses()
        _checked(
            driver.cuLaunchKernel(
                function,
                *launch.grid,
                *launch.block,
                0,
                stream,
                ctypes.addressof(parameters),
                0,
            )
        )


@cache
def _function(kernel: str) -> Any:
    """The kernel, compiled by NVRTC for the current device."""
    import torch
    from cuda.bindings import driver

    from tests.kernels.nvrtc import compile_cubin

    major, minor = torch.cuda.get_device_capability()
    torch.cuda.current_stream()  # makes the primary context current
    cubin = compile_cubin(kernel_source(kernel), f"sm_{major}{minor}")
    module = _checked(driver.cuModuleLoadData(cubin))
    return _checked(driver.cuModuleGetFunction(module, kernel.encode()))


def _checked(answer: tuple[Any, ...]) -> Any:
    """The value of a call of the driver; fails on an error."""
    status, *values = answer
    assert int(status) == 0, f"the driver answers {status}"
    return values[0] if values else None


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
