"""Arrays and streams of PyTorch, CuPy and PyCUDA on a GPU, without a copy."""

import gc
from collections.abc import Iterator

import numpy as np
import pytest

from escnet_runtime.device.arrays import (
    DeviceArray,
    device_array,
    follow,
    is_device_array,
    user_stream,
)
from escnet_runtime.device.base import Device, Stream
from escnet_runtime.errors import InputError

pytestmark = pytest.mark.gpu

MUCH = 256 * 2**20  # bytes; long enough under way for a missing wait to show


@pytest.fixture
def stream(cuda_device: Device) -> Iterator[Stream]:
    """A stream of the test's own."""
    with cuda_device.stream() as one:
        yield one


def ours(device: Device, size: int, *, stream: Stream | None = None) -> DeviceArray:
    """Bytes that are freed with the array."""
    return DeviceArray.of(device, device.allocate(size), (size,), np.uint8, stream=stream)


def test_a_tensor_comes_in_without_a_copy(cuda_device: Device, stream: Stream) -> None:
    """With what is under way on PyTorch's current stream, which is not the default one here."""
    import torch

    with torch.cuda.stream(torch.cuda.Stream()):
        tensor = torch.zeros(MUCH, dtype=torch.uint8, device="cuda")
        for value in range(50):
            tensor.fill_(value)
        assert is_device_array(tensor)
        taken = device_array(tensor, device=cuda_device, reader=stream)
        assert (taken.address, taken.shape) == (tensor.data_ptr(), (MUCH,))
        with cuda_device.allocate_host(1) as back:
            cuda_device.download(back, taken.address + MUCH - 1, 1, stream)
            stream.synchronize()
            assert back.array[0] == 49


def test_an_array_goes_out_to_pytorch_without_a_copy(cuda_device: Device, stream: Stream) -> None:
    """PyTorch's stream waits for ours, and the tensor keeps the memory."""
    import torch

    given = ours(cuda_device, MUCH, stream=stream)
    address = given.address
    for value in range(50):
        cuda_device.fill(address, value, MUCH, stream)
    tensor = torch.from_dlpack(given)  # type: ignore[attr-defined]
    del given
    gc.collect()
    assert (tensor.data_ptr(), tensor.dtype) == (address, torch.uint8)
    assert bool((tensor == 49).all())
    again = torch.as_tensor(DeviceArray(cuda_device, address, (MUCH,), np.uint8), device="cuda")
    assert again.data_ptr() == address
    stream.synchronize()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.int32])
def test_pytorch_reads_the_types_of_results(cuda_device: Device, dtype: type) -> None:
    import torch

    array = DeviceArray.of(cuda_device, cuda_device.allocate(64), (4, 2), dtype)
    tensor = torch.from_dlpack(array)  # type: ignore[attr-defined]
    assert tensor.shape == (4, 2)
    assert str(tensor.dtype) == f"torch.{np.dtype(dtype)}"


def test_a_stream_of_pytorch_is_waited_for(cuda_device: Device, stream: Stream) -> None:
    import torch

    other = torch.cuda.Stream()
    with torch.cuda.stream(other):
        tensor = torch.zeros(MUCH, dtype=torch.uint8, device="cuda")
        for value in range(50):
            tensor.fill_(value)
    for named in (other, other.cuda_stream):
        follow(cuda_device, stream, user_stream(cuda_device, named))
    with cuda_device.allocate_host(1) as back:
        cuda_device.download(back, tensor.data_ptr() + MUCH - 1, 1, stream)
        stream.synchronize()
        assert back.array[0] == 49


def test_a_tensor_that_cannot_be_read_is_refused(cuda_device: Device, stream: Stream) -> None:
    import torch

    wide = torch.zeros((4, 8), dtype=torch.uint8, device="cuda")
    trained = torch.zeros(4, device="cuda", requires_grad=True)
    for wrong, message in (
        (wide[:, ::2], "make it contiguous first"),
        (wide.t(), "make it contiguous first"),
        (wide.float(), "got an array of float32; expected uint8"),
        (wide.cpu(), "got an array on the CPU"),
        (trained, "is not handed out"),
    ):
        with pytest.raises(InputError, match=message):
            device_array(wrong, device=cuda_device, reader=stream, dtype=np.uint8)


def test_cupy_exchanges_arrays_and_streams(cuda_device: Device, stream: Stream) -> None:
    cupy = pytest.importorskip("cupy")
    with cupy.cuda.Stream(non_blocking=True) as theirs:
        array = cupy.zeros(MUCH, cupy.uint8)
        for value in range(50):
            array.fill(value)
        taken = device_array(array, device=cuda_device, reader=stream)
        assert taken.address == array.data.ptr
        with cuda_device.allocate_host(1) as back:
            cuda_device.download(back, taken.address + MUCH - 1, 1, stream)
            stream.synchronize()
            assert back.array[0] == 49
        user_stream(cuda_device, theirs).synchronize()

        given = ours(cuda_device, MUCH, stream=stream)
        for value in range(50):
            cuda_device.fill(given.address, value, MUCH, stream)
        for out in (cupy.asarray(given), cupy.from_dlpack(given)):
            assert out.data.ptr == given.address
            assert bool((out == 49).all())


def test_pycuda_exchanges_arrays_and_streams(cuda_device: Device, stream: Stream) -> None:
    pytest.importorskip("pycuda", reason="needs PyCUDA, which pip builds with nvcc")
    import pycuda.autoprimaryctx
    import pycuda.driver
    from pycuda import gpuarray

    theirs = pycuda.driver.Stream()
    array = gpuarray.zeros(MUCH, np.uint8)
    for value in range(50):
        array.fill(value, stream=theirs)
    taken = device_array(array, device=cuda_device, reader=stream, stream=theirs)
    assert taken.address == int(array.gpudata)
    assert (taken.copy_to_host()[-1], is_device_array(array)) == (49, True)
    given = ours(cuda_device, 16)
    cuda_device.fill(given.address, 6, 16, stream)
    stream.synchronize()
    view = gpuarray.GPUArray(given.shape, given.dtype, gpudata=given.address, base=given)
    assert (view.get() == 6).all()
