"""The device layer on a GPU: ``make test ARGS="tests/device tests/kernels -m gpu"``.

Where there is none, ``test_cuda_calls.py`` runs what needs no kernels, on a driver of our own.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from escnet_runtime.device.arrays import DeviceArray, follow
from escnet_runtime.device.base import ALIGNMENT, Device, Stream
from escnet_runtime.errors import DeviceError, OutOfDeviceMemory
from escnet_runtime.kernels import Launch, UpsampleBuffers, upsample_argmax_launch
from escnet_runtime.postprocess import UpsampleArgmax

pytestmark = pytest.mark.gpu

MUCH = 256 * 2**20  # bytes; long enough under way for a missing wait to show
KERNEL = "escnet_upsample_argmax"


@pytest.fixture
def stream(cuda_device: Device) -> Iterator[Stream]:
    """A stream of the test's own."""
    with cuda_device.stream() as one:
        yield one


def ours(device: Device, size: int) -> DeviceArray:
    """Bytes that are freed with the array."""
    return DeviceArray.of(device, device.allocate(size), (size,), np.uint8)


def test_the_gpu_tells_about_itself(cuda_device: Device) -> None:
    assert "NVIDIA" in cuda_device.name
    assert cuda_device.compute_capability >= (7, 5)
    free, total = cuda_device.memory()
    assert 0 < free <= total
    assert cuda_device.dlpack == (2, 0)


def test_bytes_go_there_and_back(cuda_device: Device, stream: Stream) -> None:
    with (
        cuda_device.allocate(1000) as first,
        cuda_device.allocate(1000) as second,
        cuda_device.allocate_host(1000) as given,
        cuda_device.allocate_host(1000) as back,
    ):
        assert first.address % ALIGNMENT == second.address % ALIGNMENT == 0
        assert (first.size, given.array.shape) == (1000, (1000,))
        given.array[:] = np.arange(1000) % 251
        cuda_device.upload(first.address, given, 1000, stream)
        cuda_device.copy(second.address, first.address, 600, stream)
        cuda_device.fill(second.address + 600, 7, 400, stream)
        cuda_device.download(back, second.address, 1000, stream)
        stream.synchronize()
        want = np.where(np.arange(1000) < 600, np.arange(1000) % 251, 7)
        np.testing.assert_array_equal(back.array, want)


def test_nothing_may_be_moved(cuda_device: Device, stream: Stream) -> None:
    with cuda_device.allocate(0) as memory, cuda_device.allocate_host(0) as host:
        cuda_device.upload(memory.address, host, 0, stream)
        cuda_device.fill(memory.address, 1, 0, stream)
        cuda_device.copy(memory.address, memory.address, 0, stream)
        cuda_device.download(host, memory.address, 0, stream)
        stream.synchronize()


def test_a_host_buffer_that_is_too_small_is_refused(cuda_device: Device, stream: Stream) -> None:
    with (
        cuda_device.allocate(8) as memory,
        cuda_device.allocate_host(4) as host,
        pytest.raises(DeviceError, match="the host memory has 4"),
    ):
        cuda_device.upload(memory.address, host, 8, stream)


def test_more_memory_than_there_is(cuda_device: Device) -> None:
    _, total = cuda_device.memory()
    with pytest.raises(OutOfDeviceMemory, match=f"got a request for {2 * total} bytes"):
        cuda_device.allocate(2 * total)
    cuda_device.allocate(1).close()


def test_what_is_closed_is_of_no_use(cuda_device: Device, stream: Stream) -> None:
    memory, host, event = (
        cuda_device.allocate(8),
        cuda_device.allocate_host(8),
        cuda_device.event(),
    )
    for one in (memory, host, event):
        one.close()
        one.close()
    with pytest.raises(DeviceError, match="device memory of 8 bytes that is closed"):
        _ = memory.address
    with pytest.raises(DeviceError, match="host memory of 8 bytes that is closed"):
        _ = host.array
    with pytest.raises(DeviceError, match="an event that is closed"):
        cuda_device.record(event, stream)


def test_what_nobody_closes_is_freed_with_a_warning(cuda_device: Device) -> None:
    free, _ = cuda_device.memory()
    forgotten = [cuda_device.allocate(MUCH)]
    assert cuda_device.memory()[0] < free
    with pytest.warns(ResourceWarning, match=f"memory of {MUCH} bytes was never closed"):
        forgotten.clear()
    assert cuda_device.memory()[0] == free


def test_a_stream_waits_for_another_and_the_host_does_not(
    cuda_device: Device, stream: Stream
) -> None:
    big = ours(cuda_device, MUCH)
    with (
        cuda_device.stream() as maker,
        cuda_device.event() as event,
        cuda_device.allocate_host(1) as back,
    ):
        for value in range(50):
            cuda_device.fill(big.address, value, MUCH, maker)
        cuda_device.record(event, maker)
        cuda_device.wait(stream, event)
        cuda_device.download(back, big.address + MUCH - 1, 1, stream)
        stream.synchronize()
        assert back.array[0] == 49


def test_events_tell_the_time_between_them(cuda_device: Device, stream: Stream) -> None:
    big = ours(cuda_device, MUCH)
    with (
        cuda_device.event(timing=True) as first,
        cuda_device.event(timing=True) as last,
        cuda_device.event() as plain,
    ):
        cuda_device.record(first, stream)
        cuda_device.fill(big.address, 1, MUCH, stream)
        cuda_device.record(last, stream)
        last.synchronize()
        assert last.since(first) > 0
        cuda_device.record(plain, stream)
        plain.synchronize()
        with pytest.raises(DeviceError, match="cuEventElapsedTime fails"):
            plain.since(first)


class Upsample:
    """Logits [3,4,4] on the host to labels [6,7] on the host."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.arrays = [ours(device, size) for size in (3 * 16 * 4, 168, 168, 42, 84)]
        logits, best, total, labels, confidence = (array.address for array in self.arrays)
        self.given = device.allocate_host(3 * 16 * 4)
        self.back = device.allocate_host(42)
        self.launch: Launch = upsample_argmax_launch(
            UpsampleBuffers(
                logits=logits, active=0, best=best, total=total, labels=labels,
                confidence=confidence,
            ),
            (3, 4, 4), "float32", first_category=0, start=True, classes=3, size=(6, 7),
        )  # fmt: skip

    def work(self, stream: Stream) -> None:
        self.device.upload(self.arrays[0].address, self.given, 3 * 16 * 4, stream)
        self.device.launch(self.launch, stream)
        self.device.download(self.back, self.arrays[3].address, 42, stream)

    def give(self, seed: int) -> npt.NDArray[Any]:
        """Random logits; returns the labels to come."""
        values = np.random.default_rng(seed).normal(0, 1, (3, 4, 4)).astype(np.float32)
        self.given.array[:] = values.reshape(-1).view(np.uint8)
        want = UpsampleArgmax(6, 7, (4, 4), 3, threads=1)
        want.add(0, values)
        labels: npt.NDArray[Any] = want.result()[0]
        return labels

    def labels(self) -> npt.NDArray[np.uint8]:
        return self.back.array.reshape(6, 7)

    def close(self) -> None:
        self.given.close()
        self.back.close()


@pytest.fixture
def upsample(cuda_device: Device) -> Iterator[Upsample]:
    """Buffers and a launch."""
    one = Upsample(cuda_device)
    yield one
    one.close()


def test_a_kernel_runs_at_once_and_in_a_graph(
    cuda_device: Device, stream: Stream, upsample: Upsample
) -> None:
    want = upsample.give(0)
    upsample.work(stream)
    stream.synchronize()
    np.testing.assert_array_equal(upsample.labels(), want)
    with cuda_device.capture(stream, lambda: upsample.work(stream)) as graph:
        for seed in (1, 2, 3):
            want = upsample.give(seed)
            graph.launch(stream)
            stream.synchronize()
            np.testing.assert_array_equal(upsample.labels(), want)


def test_capturing_runs_nothing(cuda_device: Device, stream: Stream) -> None:
    array = ours(cuda_device, 4)
    cuda_device.fill(array.address, 1, 4, stream)
    with cuda_device.capture(
        stream, lambda: cuda_device.fill(array.address, 2, 4, stream)
    ) as graph:
        stream.synchronize()
        assert array.copy_to_host().tolist() == [1, 1, 1, 1]
        graph.launch(stream)
        stream.synchronize()
    assert array.copy_to_host().tolist() == [2, 2, 2, 2]


def test_a_kernel_may_be_compiled_while_a_graph_is_captured(tmp_path: Path) -> None:
    """Loading it is no work of the stream."""
    from escnet_runtime.device.cuda import CudaDevice

    with CudaDevice(cache=tmp_path) as device, device.stream() as stream:
        upsample = Upsample(device)
        with device.capture(stream, lambda: upsample.work(stream)) as graph:
            want = upsample.give(4)
            graph.launch(stream)
            stream.synchronize()
            np.testing.assert_array_equal(upsample.labels(), want)
        upsample.close()


@pytest.mark.parametrize("what", ["wait", "raise", "unjoined"])
def test_what_cannot_be_captured_leaves_the_stream_usable(
    cuda_device: Device, stream: Stream, what: str
) -> None:
    array = ours(cuda_device, 4)
    with cuda_device.stream() as side:

        def work() -> None:
            cuda_device.fill(array.address, 1, 4, stream)
            if what == "wait":
                stream.synchronize()
            elif what == "raise":
                raise ZeroDivisionError
            else:
                follow(cuda_device, side, stream)
                cuda_device.fill(array.address, 3, 4, side)

        expected = ZeroDivisionError if what == "raise" else DeviceError
        with pytest.raises(expected):
            cuda_device.capture(stream, work)
        for one in (stream, side):
            cuda_device.fill(array.address, 2, 4, one)
            one.synchronize()
    assert array.copy_to_host().tolist() == [2, 2, 2, 2]


def test_memory_may_be_freed_while_a_graph_is_captured(cuda_device: Device, stream: Stream) -> None:
    """A result that somebody drops meanwhile, for instance."""
    array, dropped = ours(cuda_device, 4), cuda_device.allocate(4)

    def work() -> None:
        cuda_device.fill(array.address, 5, 4, stream)
        dropped.close()

    with cuda_device.capture(stream, work) as graph:
        graph.launch(stream)
        stream.synchronize()
    assert array.copy_to_host().tolist() == [5, 5, 5, 5]


def test_a_stream_may_join_a_capture(cuda_device: Device, stream: Stream) -> None:
    array = ours(cuda_device, 4)
    with cuda_device.stream() as side:

        def work() -> None:
            follow(cuda_device, side, stream)
            cuda_device.fill(array.address, 3, 4, side)
            follow(cuda_device, stream, side)

        with cuda_device.capture(stream, work) as graph:
            graph.launch(stream)
            stream.synchronize()
    assert array.copy_to_host().tolist() == [3, 3, 3, 3]


def test_threads_work_at_the_same_time(cuda_device: Device) -> None:
    """Each with a stream, one of them capturing."""
    failures: list[BaseException] = []

    def body(number: int) -> None:
        try:
            upsample = Upsample(cuda_device)
            with cuda_device.stream() as stream:
                for seed in range(number, number + 20):
                    want = upsample.give(seed)
                    if number:
                        upsample.work(stream)
                    else:
                        graph = cuda_device.capture(stream, lambda: upsample.work(stream))
                        with graph:
                            graph.launch(stream)
                            stream.synchronize()
                    cuda_device.allocate(1 << 20).close()
                    stream.synchronize()
                    np.testing.assert_array_equal(upsample.labels(), want)
            upsample.close()
        except BaseException as error:
            failures.append(error)

    cuda_device.prepare(KERNEL)
    threads = [threading.Thread(target=body, args=(100 * number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_the_callers_context_stays(cuda_device: Device) -> None:
    from cuda.bindings import driver

    seen: list[tuple[int, int]] = []

    def body() -> None:
        before = driver.cuCtxGetCurrent()[1]
        cuda_device.allocate(8).close()
        seen.append((int(before), int(driver.cuCtxGetCurrent()[1])))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [(0, 0)]


def test_a_library_works_in_the_context_of_the_device(cuda_device: Device) -> None:
    """And the caller's comes back, also from a library that makes another one current."""
    from cuda.bindings import driver

    def now() -> int:
        return int(driver.cuCtxGetCurrent()[1])

    with cuda_device.current():
        ours = now()
        assert ours
    theirs = driver.cuDevicePrimaryCtxRetain(driver.cuDeviceGet(0)[1])[1]
    seen: list[int] = []

    def body() -> None:
        seen.append(now())
        with cuda_device.current():
            seen.append(now())
            driver.cuCtxSetCurrent(driver.CUcontext(0))
        seen.append(now())
        driver.cuCtxPushCurrent(theirs)
        with contextlib.suppress(RuntimeError), cuda_device.current():
            driver.cuCtxSetCurrent(driver.CUcontext(0))
            raise RuntimeError
        seen.append(now())

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    driver.cuDevicePrimaryCtxRelease(driver.cuDeviceGet(0)[1])
    assert seen == [0, ours, 0, int(theirs)]


def test_a_closed_device_is_of_no_use_but_what_it_made_lives(tmp_path: Path) -> None:
    from escnet_runtime.device.cuda import CudaDevice

    device = CudaDevice(cache=tmp_path)
    memory = device.allocate(8)
    device.close()
    device.close()
    with pytest.raises(DeviceError, match="a device that is closed"):
        device.allocate(8)
    assert memory.address
    memory.close()


def test_no_other_gpu_is_opened_than_there_is() -> None:
    from escnet_runtime.device.cuda import CudaDevice

    with pytest.raises(DeviceError, match="got device 99; expected one of the"):
        CudaDevice(99)


def test_kernels_are_compiled_once_on_a_machine(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from escnet_runtime.device.cuda import CudaDevice

    caplog.set_level(logging.INFO, logger="escnet_runtime.device.compile")
    for _ in range(2):
        with CudaDevice(cache=tmp_path) as device:
            device.prepare(KERNEL)
    assert [one.getMessage().split(" in ")[0] for one in caplog.records] == [f"compiled {KERNEL}"]


def test_addresses_that_a_kernel_cannot_use_are_told_apart(cuda_device: Device) -> None:
    array = ours(cuda_device, 8)
    assert cuda_device.reaches(array.address)
    assert not cuda_device.reaches(int(np.zeros(8).ctypes.data))
    assert not cuda_device.reaches(0x10)
