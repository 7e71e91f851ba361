"""Arrays and streams of PyCUDA, CuPy, PyTorch and others: in and out, without a copy.

In comes whatever has ``__dlpack__`` or ``__cuda_array_interface__``; out goes a `DeviceArray`,
which has both. Work is ordered from stream to stream by events: the host never waits here.
"""

import math
import weakref
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import DeviceError, InputError
from . import dlpack
from .base import Device, DeviceMemory, Stream

if TYPE_CHECKING:
    from typing_extensions import Self  # of typing from Python 3.11 on

__all__ = [
    "BorrowedStream",
    "DeviceArray",
    "device_array",
    "follow",
    "is_device_array",
    "user_stream",
]

_LEGACY_STREAM: Final = 1  # cuda.h: CU_STREAM_LEGACY, the default one of most programs
_CUDA_TYPES: Final = (2, 13)  # dlpack.h: kDLCUDA and kDLCUDAManaged
_KINDS: Final = "biuf"


class BorrowedStream:
    """A stream of another library, by its handle; closing it leaves it alone.

    Its owner keeps it as long as work is given to it.
    """

    def __init__(self, device: Device, handle: int) -> None:
        self._device, self._handle = device, handle

    @property
    def handle(self) -> int:
        return self._handle

    def synchronize(self) -> None:
        with self._device.event() as event:
            self._device.record(event, self)
            event.synchronize()

    def close(self) -> None:
        pass

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def user_stream(device: Device, stream: object) -> BorrowedStream:
    """The stream that a user names.

    Args:
        device: where it lives.
        stream: its handle as an integer (0 or 1 is the default stream), or an object of a library:
            one with ``__cuda_stream__`` (CuPy, PyTorch, cuda-core), or an integer ``handle``
            (PyCUDA), ``cuda_stream`` (PyTorch) or ``ptr`` (CuPy).

    Raises:
        InputError: it is none of these.
    """
    handle: object = stream
    if hasattr(stream, "__cuda_stream__"):
        answer = stream.__cuda_stream__  # a method; older libraries have a property
        _, handle = answer() if callable(answer) else answer
    else:
        for name in ("handle", "cuda_stream", "ptr"):
            if hasattr(stream, name):
                handle = getattr(stream, name)
                break
    if isinstance(handle, bool) or not hasattr(handle, "__index__"):
        raise InputError(
            f"got {stream!r} as a stream; expected an integer handle, or a stream of PyCUDA, CuPy, "
            "PyTorch or another library that has __cuda_stream__"
        )
    return BorrowedStream(device, int(handle.__index__()) or _LEGACY_STREAM)


def follow(device: Device, later: Stream, earlier: Stream) -> None:
    """Make ``later`` wait for what ``earlier`` was given so far; the host does not wait."""
    with device.event() as event:
        device.record(event, earlier)
        device.wait(later, event)


class DeviceArray:
    """An array in device memory, in C order, that other libraries take without a copy.

    ``cupy.asarray``, ``cupy.from_dlpack``, ``torch.from_dlpack``, a kernel of PyCUDA or
    ``pycuda.gpuarray.GPUArray(shape, dtype, gpudata=array.address, base=array)`` use its memory.
    What they make keeps this object, and this object keeps ``owner``.
    """

    def __init__(
        self,
        device: Device,
        address: int,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        *,
        owner: object = None,
        stream: Stream | None = None,
    ) -> None:
        """Describe memory that is there.

        Args:
            device: whose memory it is.
            address: of the first element.
            shape: elements along each axis.
            dtype: of the elements.
            owner: kept as long as this array.
            stream: whose work makes the content, open as long as somebody may take the array. None
                if the content is there.
        """
        self._device, self._address, self._stream = device, address, stream
        self._shape, self._dtype, self._owner = tuple(shape), np.dtype(dtype), owner

    @classmethod
    def of(
        cls,
        device: Device,
        memory: DeviceMemory,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        *,
        stream: Stream | None = None,
    ) -> "Self":
        """An array that owns its memory: freed when nobody refers to the array any more."""
        array = cls(device, memory.address, shape, dtype, stream=stream)
        if array.nbytes > memory.size:
            raise DeviceError(f"got {memory.size} bytes for an array of {array.nbytes}")
        weakref.finalize(array, memory.close).atexit = False  # the process ends with its memory
        return array

    @property
    def address(self) -> int:
        """Address of the first element on the device."""
        return self._address

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along each axis."""
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return self._dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self._shape) * self._dtype.itemsize

    @property
    def stream(self) -> Stream | None:
        """Whose work makes the content; None if it is there."""
        return self._stream

    def __repr__(self) -> str:
        return f"DeviceArray({list(self._shape)}, {self._dtype})"

    def copy_to_host(self) -> npt.NDArray[Any]:
        """The content; the host waits for it."""
        with (
            self._device.allocate_host(self.nbytes) as host,
            self._device.stream() as stream,
        ):
            if self._stream is not None:
                follow(self._device, stream, self._stream)
            self._device.download(host, self._address, self.nbytes, stream)
            stream.synchronize()
            return host.array.copy().view(self._dtype).reshape(self._shape)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the CUDA array interface."""
        if self._device.dlpack[0] not in _CUDA_TYPES:
            raise AttributeError("this array is not in the memory of a GPU")
        return {
            "shape": self._shape,
            "typestr": self._dtype.str,
            "data": (self._address, False),
            "strides": None,
            "stream": None if self._stream is None else self._stream.handle,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device.dlpack

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """As the array standard of Python has it; ``max_version`` may be any.

        Raises:
            BufferError: a copy, or another device, is asked for.
        """
        if copy or (dl_device is not None and tuple(dl_device) != self._device.dlpack):
            raise BufferError(f"this array is handed out without a copy, on {self._device.dlpack}")
        if self._stream is not None and stream != -1:  # -1: the taker sees to the order
            taker = BorrowedStream(self._device, stream or _LEGACY_STREAM)
            follow(self._device, taker, self._stream)
        return dlpack.give(
            dlpack.Tensor(
                address=self._address,
                shape=self._shape,
                dtype=self._dtype,
                device=self._device.dlpack,
                owner=self,
            )
        )


def is_device_array(array: object) -> bool:
    """Whether an object is an array of ours, or says that it is one in the memory of a GPU."""
    if isinstance(array, DeviceArray):
        return True
    if hasattr(array, "__dlpack_device__"):
        try:
            return int(array.__dlpack_device__()[0]) in _CUDA_TYPES
        except Exception:  # a place that DLPack has no number for, as PyTorch's "meta"
            return False
    return hasattr(array, "__cuda_array_interface__")


def device_array(
    array: object,
    *,
    device: Device,
    reader: Stream,
    stream: object = None,
    dtype: npt.DTypeLike | None = None,
) -> DeviceArray:
    """An array of another library, or one of ours, to be read on a stream.

    ``reader`` is made to wait for what is under way on the array: on ``stream`` if the user names
    one (see `user_stream`), on the library's current stream (DLPack), on the stream that the array
    names (CUDA array interface), or on the default stream if it names none. Keep what is returned
    until the work on it is done. Its ``stream`` is ``reader``: whoever copies it to the host, or
    takes it on another stream, waits for the same, as long as ``reader`` is open.

    Args:
        array: anything with ``__dlpack__`` or ``__cuda_array_interface__``, in C order.
        device: where it has to be.
        reader: the stream that will read it.
        stream: the user's stream that makes it.
        dtype: what it has to hold; None takes whole numbers, floating-point numbers and booleans.

    Raises:
        InputError: it is no such array, is somewhere else, is not contiguous, or holds another
            type.
    """
    if stream is not None:
        follow(device, reader, user_stream(device, stream))
    if hasattr(array, "__dlpack_device__") and hasattr(array, "__dlpack__"):
        found = _from_dlpack(array, device, reader)
    elif hasattr(array, "__cuda_array_interface__"):
        found, made_on = _from_interface(array, device)
        if made_on is not None or stream is None:
            follow(device, reader, BorrowedStream(device, made_on or _LEGACY_STREAM))
    else:
        raise InputError(
            f"got a {type(array).__name__}; expected an array on the GPU, with __dlpack__ or "
            "__cuda_array_interface__"
        )
    _require_usable(found, device, None if dtype is None else np.dtype(dtype))
    return DeviceArray(
        *(device, found.address, found.shape, found.dtype), owner=found.owner, stream=reader
    )


def _from_dlpack(array: Any, device: Device, reader: Stream) -> dlpack.Tensor:
    kind, number = array.__dlpack_device__()
    where = int(kind), int(number)
    if where != device.dlpack and (where[0] not in _CUDA_TYPES or where[1] != device.dlpack[1]):
        raise InputError(
            f"got an array on {_place(where)}; expected one on {_place(device.dlpack)}"
        )
    ordered = {"stream": reader.handle} if where[0] in _CUDA_TYPES else {}
    try:
        # On a GPU, the library makes the reader wait for its current stream: that of the array's
        # GPU, which has to be the current one (PyTorch refuses where it is not).
        with device.current():
            capsule = array.__dlpack__(**ordered)
    except BufferError as error:
        raise InputError(f"got a {type(array).__name__} that is not handed out: {error}") from error
    return dlpack.take(capsule)


def _from_interface(array: Any, device: Device) -> tuple[dlpack.Tensor, int | None]:
    """The array, and the stream it names."""
    interface = array.__cuda_array_interface__
    try:
        shape = tuple(map(int, interface["shape"]))
        address = int(interface["data"][0])
        dtype = np.dtype(interface["typestr"])
        strides = interface.get("strides")
        stream = interface.get("stream")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(
            f"got a __cuda_array_interface__ that is none ({error!r}): {interface!r}"
        ) from error
    if interface.get("mask") is not None:
        raise InputError("got an array with a mask; expected one without")
    if stream == 0:  # the interface forbids it: it could mean two streams
        raise InputError("got a __cuda_array_interface__ of stream 0; expected None, 1, 2 or more")
    tensor = dlpack.Tensor(
        address=address,
        shape=shape,
        strides=None if strides is None else tuple(map(int, strides)),
        dtype=dtype,
        device=device.dlpack,
        owner=array,
    )
    return tensor, None if stream is None else int(stream)


def _require_usable(found: dlpack.Tensor, device: Device, wanted: np.dtype[Any] | None) -> None:
    dtype = np.dtype(found.dtype)
    if wanted is not None and dtype != wanted:
        raise InputError(f"got an array of {dtype}; expected {wanted}: convert it on the GPU")
    if dtype.kind not in _KINDS or not dtype.isnative:
        raise InputError(
            f"got an array of {dtype.str}; expected numbers or booleans of this machine's byte "
            "order"
        )
    if not _is_contiguous(found.shape, found.strides, dtype.itemsize):
        raise InputError(
            f"got an array {list(found.shape)} of {dtype} with strides {found.strides}; expected "
            "one without gaps, in C order: make it contiguous first"
        )
    if math.prod(found.shape) and not device.reaches(found.address):
        raise InputError(
            f"got an array at {found.address:#x}, which {_place(device.dlpack)} does not reach "
            "from its primary context: use that context (pycuda.autoprimaryctx) and that device"
        )


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None, step: int) -> bool:
    if strides is None or 0 in shape:
        return True
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def _place(device: tuple[int, int]) -> str:
    names = {1: "the CPU", 2: "GPU", 3: "the CPU (page-locked)", 13: "GPU (managed)"}
    kind, number = device
    name = names.get(kind, f"a device of DLPack's type {kind}, number")
    return name if name.startswith("the") else f"{name} {number}"
