"""Arrays and streams of other libraries, by what PyCUDA, CuPy and PyTorch say of theirs.

The fakes have exactly the attributes that those libraries document; NumPy and PyTorch on the CPU
are real takers and givers of DLPack. Real ones on a GPU are in ``test_cuda.py``.
"""

import gc
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from escnet_runtime.device import dlpack
from escnet_runtime.device.arrays import (
    DeviceArray,
    device_array,
    follow,
    is_device_array,
    user_stream,
)
from escnet_runtime.device.base import Stream
from escnet_runtime.errors import DeviceError, InputError
from tests.device.host_device import HostDevice
from tests.kernels.machines import HostMachine

Array = npt.NDArray[Any]


class GpuLike(HostDevice):
    """A device on the CPU that DLPack takes for GPU 0."""

    dlpack = (2, 0)


@pytest.fixture
def device(host: HostMachine) -> HostDevice:
    """Lazy, so that a stream that does not wait sees nothing."""
    return HostDevice(host)


@pytest.fixture
def gpu_like(host: HostMachine) -> GpuLike:
    """The same, with the memory of a GPU as far as it says."""
    return GpuLike(host)


@dataclass
class Interface:
    """An array with nothing but ``__cuda_array_interface__``."""

    content: dict[str, Any]

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.content


def pycuda_array(array: Array) -> Interface:
    """As ``pycuda.gpuarray.GPUArray`` has it: strides always, a stream never."""
    data = (int(array.ctypes.data), False)
    rest = {"strides": array.strides, "typestr": array.dtype.str, "stream": None, "version": 3}
    return Interface({"shape": array.shape, "data": data, **rest})


def cupy_array(array: Array, stream: int) -> Interface:
    """As ``cupy.ndarray`` has it: no strides in C order, and the current stream."""
    data, typestr = (int(array.ctypes.data), False), array.dtype.str
    rest = {"descr": [("", typestr)], "stream": stream, "version": 3}
    return Interface(
        {"shape": array.shape, "data": data, "typestr": typestr, "strides": None, **rest}
    )


def torch_array(array: Array) -> Interface:
    """As ``torch.Tensor`` has it: version 2, without a stream."""
    data, typestr = (int(array.ctypes.data), False), array.dtype.str
    return Interface(
        {"typestr": typestr, "shape": array.shape, "strides": None, "data": data, "version": 2}
    )


def read(device: HostDevice, array: DeviceArray, stream: Stream) -> Array:
    """The content as ``stream`` sees it."""
    host = device.allocate_host(array.nbytes)
    device.download(host, array.address, array.nbytes, stream)
    stream.synchronize()
    return host.array.view(array.dtype).reshape(array.shape)


@pytest.mark.parametrize("library", [pycuda_array, torch_array])
def test_an_array_that_names_no_stream_is_made_on_the_default_one(
    device: HostDevice, library: Callable[[Array], Interface]
) -> None:
    frame, reader = np.zeros((4, 5, 3), np.uint8), device.stream()
    address = device.lend(frame)
    device.fill(address, 9, frame.nbytes, user_stream(device, 0))
    taken = device_array(library(frame), device=device, reader=reader)
    assert (taken.address, taken.shape) == (address, (4, 5, 3))
    assert taken.dtype == np.uint8
    assert device.calls("synchronize") == []  # the host does not wait
    assert (read(device, taken, reader) == 9).all()


def test_the_stream_that_an_array_names_is_waited_for(device: HostDevice) -> None:
    frame, reader, maker = np.zeros(8, np.float32), device.stream(), device.stream()
    device.fill(device.lend(frame), 9, frame.nbytes, maker)
    taken = device_array(cupy_array(frame, maker.handle), device=device, reader=reader)
    assert device.calls("synchronize") == []
    assert (read(device, taken, reader).view(np.uint8) == 9).all()


def test_a_copy_to_the_host_waits_for_what_is_under_way(device: HostDevice) -> None:
    """On a stream of its own, which nothing else orders behind the one that makes the array."""
    frame, reader, maker = np.zeros(8, np.float32), device.stream(), device.stream()
    device.fill(device.lend(frame), 9, frame.nbytes, maker)
    taken = device_array(cupy_array(frame, maker.handle), device=device, reader=reader)
    assert taken.stream is reader
    assert (taken.copy_to_host().view(np.uint8) == 9).all()
    reader.close()
    with pytest.raises(DeviceError, match="closed"):
        taken.copy_to_host()


@dataclass
class PycudaStream:
    handle: int


@dataclass
class CupyStream:
    ptr: int


@dataclass
class TorchStream:
    cuda_stream: int


@dataclass
class StandardStream:
    number: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.number


@pytest.mark.parametrize(
    "library", [int, np.int64, PycudaStream, CupyStream, TorchStream, StandardStream]
)
def test_the_users_stream_is_waited_for(
    device: HostDevice, library: Callable[[int], object]
) -> None:
    frame, reader, maker = np.zeros(8, np.uint8), device.stream(), device.stream()
    device.fill(device.lend(frame), 9, 8, maker)
    taken = device_array(
        pycuda_array(frame), device=device, reader=reader, stream=library(maker.handle)
    )
    assert (read(device, taken, reader) == 9).all()


@pytest.mark.parametrize("stream", [True, "0", 1.5, None, object()])
def test_what_is_no_stream_is_refused(device: HostDevice, stream: object) -> None:
    with pytest.raises(InputError, match="as a stream; expected an integer handle"):
        user_stream(device, stream)


def test_a_borrowed_stream_is_waited_for_and_left_alone(device: HostDevice) -> None:
    mine, memory = device.stream(), device.allocate(4)
    device.fill(memory.address, 3, 4, mine)
    with user_stream(device, mine) as borrowed:
        borrowed.synchronize()
    got = read(device, DeviceArray(device, memory.address, (4,), np.uint8), mine)
    assert got.tolist() == [3, 3, 3, 3]


def test_an_array_of_ours_comes_back_in(gpu_like: GpuLike) -> None:
    """Through DLPack: the giver makes the reader's stream wait."""
    maker, reader, memory = gpu_like.stream(), gpu_like.stream(), gpu_like.allocate(12)
    gpu_like.fill(memory.address, 5, 12, maker)
    given = DeviceArray.of(gpu_like, memory, (2, 3), np.uint16, stream=maker)
    taken = device_array(given, device=gpu_like, reader=reader, dtype=np.uint16)
    assert (taken.address, taken.shape) == (memory.address, (2, 3))
    assert (read(gpu_like, taken, reader).view(np.uint8) == 5).all()


@pytest.mark.parametrize(("asked", "waits"), [("reader", True), (-1, False)])
def test_the_taker_says_which_stream_has_to_wait(
    gpu_like: GpuLike, asked: str | int, waits: bool
) -> None:
    maker, reader, memory = gpu_like.stream(), gpu_like.stream(), gpu_like.allocate(4)
    gpu_like.fill(memory.address, 5, 4, maker)
    given = DeviceArray.of(gpu_like, memory, (4,), np.uint8, stream=maker)
    given.__dlpack__(stream=reader.handle if isinstance(asked, str) else asked)
    assert (read(gpu_like, given, reader).tolist() == [5, 5, 5, 5]) is waits


def test_the_interface_of_our_arrays_is_version_3(gpu_like: GpuLike) -> None:
    maker, memory = gpu_like.stream(), gpu_like.allocate(12)
    given = DeviceArray(gpu_like, memory.address, (2, 3), np.float16, stream=maker, owner=memory)
    assert given.__cuda_array_interface__ == {
        "shape": (2, 3),
        "typestr": "<f2",
        "data": (memory.address, False),
        "strides": None,
        "stream": maker.handle,
        "version": 3,
    }
    done = DeviceArray(gpu_like, memory.address, (2, 3), np.float16)
    assert done.__cuda_array_interface__["stream"] is None
    assert given.__dlpack_device__() == (2, 0)
    assert is_device_array(given)


TYPES = [np.bool_, np.uint8, np.uint16, np.int32, np.int64, np.float16, np.float32, np.float64]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (2, 0)])
def test_numpy_takes_our_arrays_and_we_take_numpys(
    device: HostDevice, dtype: type, shape: tuple[int, ...]
) -> None:
    """No byte is copied."""
    content: Array = np.ones(shape, dtype)
    content.reshape(-1)[1:2] = 0
    device.lend(content)
    taken = device_array(content, device=device, reader=device.stream())
    assert (taken.address, taken.shape) == (content.ctypes.data, shape)
    assert taken.dtype == dtype
    back = np.from_dlpack(taken)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, content)
    assert back.size == 0 or back.ctypes.data == content.ctypes.data


def test_memory_lives_as_long_as_another_library_uses_it(device: HostDevice) -> None:
    """PyTorch's tensor keeps the bytes, though nobody else does."""
    torch = pytest.importorskip("torch")
    memory = device.allocate(24)
    array = DeviceArray.of(device, memory, (2, 3), np.float32)
    tensor = torch.from_dlpack(array)
    assert tensor.data_ptr() == memory.address
    del array
    gc.collect()
    assert memory in device.open
    del tensor
    gc.collect()
    assert memory not in device.open


def test_a_capsule_that_nobody_takes_keeps_nothing(device: HostDevice) -> None:
    memory = device.allocate(4)
    capsule = DeviceArray.of(device, memory, (4,), np.uint8).__dlpack__()
    gc.collect()
    assert memory in device.open
    del capsule
    gc.collect()
    assert memory not in device.open


def test_what_is_taken_is_given_back_when_nobody_refers_to_it(device: HostDevice) -> None:
    memory = device.allocate(4)
    taken = dlpack.take(DeviceArray.of(device, memory, (4,), np.uint8).__dlpack__())
    gc.collect()
    assert memory in device.open
    del taken
    gc.collect()
    assert memory not in device.open


def test_an_interface_keeps_its_array(device: HostDevice) -> None:
    frame = np.full(3, 4, np.uint8)
    device.lend(frame)
    source = pycuda_array(frame)
    taken = device_array(source, device=device, reader=device.stream())
    assert any(kept is source for kept in vars(taken).values())


def test_a_capsule_is_taken_once(device: HostDevice) -> None:
    capsule = DeviceArray.of(device, device.allocate(4), (4,), np.uint8).__dlpack__()
    dlpack.take(capsule)
    with pytest.raises(InputError, match="expected a DLPack capsule that nobody took"):
        dlpack.take(capsule)
    with pytest.raises(InputError, match="got 'text'"):
        dlpack.take("text")


def test_content_comes_to_the_host(device: HostDevice) -> None:
    maker, memory = device.stream(), device.allocate(12)
    device.fill(memory.address, 1, 12, maker)
    array = DeviceArray.of(device, memory, (3, 2), np.uint16, stream=maker)
    np.testing.assert_array_equal(array.copy_to_host(), np.full((3, 2), 257))


def test_no_copy_and_no_other_device_is_handed_out(device: HostDevice) -> None:
    array = DeviceArray.of(device, device.allocate(4), (4,), np.uint8)
    for wrong in ({"copy": True}, {"dl_device": (2, 1)}):
        with pytest.raises(BufferError, match="without a copy"):
            array.__dlpack__(**wrong)


def test_memory_is_not_called_larger_than_it_is(device: HostDevice) -> None:
    with pytest.raises(DeviceError, match="got 4 bytes for an array of 8"):
        DeviceArray.of(device, device.allocate(4), (4,), np.uint16)


FRAME = np.zeros((4, 6, 3), np.uint8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": (24, 3, 1)}, r"with strides \(24, 3, 1\); expected one without gaps"),
        ({"strides": (1, 4, 24)}, "make it contiguous first"),
        ({"typestr": ">u2"}, "got an array of >u2"),
        ({"typestr": "<c8"}, "expected numbers or booleans"),
        ({"typestr": "<f4"}, "got an array of float32; expected uint8: convert it on the GPU"),
        ({"typestr": "rubbish"}, "got a __cuda_array_interface__ that is none"),
        ({"data": None}, "got a __cuda_array_interface__ that is none"),
        ({"data": (8, False)}, r"got an array at 0x8, which the CPU .* use that context"),
        ({"mask": FRAME}, "got an array with a mask"),
        ({"stream": 0}, "of stream 0; expected None, 1, 2 or more"),
    ],
)
def test_what_cannot_be_read_is_refused(
    device: HostDevice, change: dict[str, Any], message: str
) -> None:
    device.lend(FRAME)
    content = {**pycuda_array(FRAME).content, **change}
    dtype = np.uint8 if change == {"typestr": "<f4"} else None
    with pytest.raises(InputError, match=message):
        device_array(Interface(content), device=device, reader=device.stream(), dtype=dtype)


@pytest.mark.parametrize("missing", ["shape", "typestr", "data"])
def test_an_interface_without_a_key_is_refused(device: HostDevice, missing: str) -> None:
    content = pycuda_array(FRAME).content
    del content[missing]
    with pytest.raises(InputError, match=f"that is none.*'{missing}'"):
        device_array(Interface(content), device=device, reader=device.stream())


def test_strides_of_axes_with_one_element_do_not_matter(device: HostDevice) -> None:
    frame = np.zeros((1, 4), np.uint8)
    device.lend(frame)
    content = {**pycuda_array(frame).content, "strides": (777, 1)}
    assert device_array(Interface(content), device=device, reader=device.stream()).shape == (1, 4)


def test_what_is_no_array_on_the_device_is_refused(device: HostDevice, gpu_like: GpuLike) -> None:
    for wrong, message in (
        ([1, 2], "got a list; expected an array on the GPU"),
        (FRAME, "got an array on the CPU; expected one on GPU 0"),
        (FRAME[::2], "got an array on the CPU"),
    ):
        with pytest.raises(InputError, match=message):
            device_array(wrong, device=gpu_like, reader=gpu_like.stream())
    with pytest.raises(InputError, match="make it contiguous first"):
        device_array(FRAME[::2], device=device, reader=device.stream())


@dataclass
class OfItsGpu:
    """As a ``torch.Tensor``, which is handed out where its GPU is the current one alone."""

    device: HostDevice
    array: DeviceArray

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device.dlpack

    def __dlpack__(self, *, stream: int) -> Any:
        if not self.device.is_current():
            raise BufferError("Can't export tensors on a different CUDA device index")
        return self.array.__dlpack__(stream=stream)


def test_an_array_is_taken_where_its_gpu_is_the_current_one(gpu_like: GpuLike) -> None:
    """PyTorch goes by it, also for the stream that it makes the reader wait for."""
    maker, reader, memory = gpu_like.stream(), gpu_like.stream(), gpu_like.allocate(4)
    gpu_like.fill(memory.address, 5, 4, maker)
    array = DeviceArray.of(gpu_like, memory, (4,), np.uint8, stream=maker)
    taken = device_array(OfItsGpu(gpu_like, array), device=gpu_like, reader=reader)
    assert read(gpu_like, taken, reader).tolist() == [5, 5, 5, 5]


class Refusing:
    """A tensor that requires a gradient."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: int) -> None:
        raise BufferError("Can't export tensors that require gradient")


def test_an_array_that_is_not_handed_out_is_refused(gpu_like: GpuLike) -> None:
    with pytest.raises(InputError, match="is not handed out: Can't export"):
        device_array(Refusing(), device=gpu_like, reader=gpu_like.stream())


def test_bfloat16_has_no_type_in_numpy(device: HostDevice) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(4, dtype=torch.bfloat16)
    with pytest.raises(InputError, match="DLPack's type 4 with 16 bits"):
        device_array(tensor, device=device, reader=device.stream())


def test_only_arrays_on_a_gpu_are_told_apart_from_the_hosts() -> None:
    torch = pytest.importorskip("torch")
    assert is_device_array(pycuda_array(FRAME))
    assert is_device_array(Refusing())
    assert not is_device_array(FRAME)
    assert not is_device_array(torch.zeros(3))
    assert not is_device_array(torch.zeros(3, device="meta"))  # PyTorch raises ValueError of it
    assert not is_device_array("photo.png")


def test_following_is_not_waiting(device: HostDevice) -> None:
    earlier, later, memory = device.stream(), device.stream(), device.allocate(4)
    device.fill(memory.address, 8, 4, earlier)
    follow(device, later, earlier)
    assert [one.name for one in device.log] == ["allocate", "fill", "record", "wait"]
    got = read(device, DeviceArray(device, memory.address, (4,), np.uint8), later)
    assert got.tolist() == [8, 8, 8, 8]


AT_THE_END = """
import sys
from types import SimpleNamespace

import numpy as np

from escnet_runtime.device.arrays import DeviceArray

content = np.arange(6, dtype=np.uint8)
device = SimpleNamespace(dlpack=(1, 0))
ours = DeviceArray(device, content.ctypes.data, (6,), np.uint8, owner=content)
sys.taken, sys.untaken = np.from_dlpack(ours), ours.__dlpack__()
"""


def test_arrays_may_outlive_the_modules_of_a_process_that_ends() -> None:
    """The deleter is called by the taker, when this package has gone."""
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_END], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
