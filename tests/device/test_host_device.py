"""The device on the CPU fails where a GPU would go wrong."""

import ctypes

import numpy as np
import pytest

from escnet_runtime.device.base import Device
from escnet_runtime.errors import DeviceError, OutOfDeviceMemory
from escnet_runtime.kernels import UpsampleBuffers, upsample_argmax_launch
from escnet_runtime.postprocess import UpsampleArgmax
from tests.device.host_device import DeviceFaultError, HostDevice
from tests.kernels.machines import HostMachine


@pytest.fixture
def lazy(host: HostMachine) -> HostDevice:
    """A device that does nothing before the host waits."""
    return HostDevice(host)


def fill_and_wait(device: HostDevice, address: int) -> None:
    """Eight bytes."""
    stream = device.stream()
    device.fill(address, 0, 8, stream)
    stream.synchronize()


def test_it_is_a_device(host_device: HostDevice) -> None:
    device: Device = host_device
    assert device.name


def test_bytes_go_there_and_back(host_device: HostDevice) -> None:
    stream = host_device.stream()
    with host_device.allocate(1000) as first, host_device.allocate(1000) as second:
        assert first.address % 512 == 0
        given, back = host_device.allocate_host(1000), host_device.allocate_host(1000)
        given.array[:] = np.arange(1000) % 251
        host_device.upload(first.address, given, 1000, stream)
        host_device.copy(second.address, first.address, 600, stream)
        host_device.fill(second.address + 600, 7, 400, stream)
        host_device.download(back, second.address, 1000, stream)
        stream.synchronize()
    want = np.where(np.arange(1000) < 600, np.arange(1000) % 251, 7)
    np.testing.assert_array_equal(back.array, want)
    assert host_device.calls("upload", "copy", "fill", "download", "synchronize") == [
        ("upload", 1000),
        ("copy", 600),
        ("fill", 400),
        ("download", 1000),
        ("synchronize", "stream"),
    ]


def test_a_kernel_runs_in_a_graph_as_often_as_wanted(host_device: HostDevice) -> None:
    """Labels are those of the CPU path, for logits that change between replays."""
    stream, size = host_device.stream(), (6, 7)
    logits = host_device.allocate(3 * 16 * 4)
    best, total = host_device.allocate(6 * 7 * 4), host_device.allocate(6 * 7 * 4)
    labels, confidence = host_device.allocate(6 * 7), host_device.allocate(6 * 7 * 2)
    given, back = host_device.allocate_host(3 * 16 * 4), host_device.allocate_host(6 * 7)
    launch = upsample_argmax_launch(
        UpsampleBuffers(
            logits=logits.address,
            active=0,
            best=best.address,
            total=total.address,
            labels=labels.address,
            confidence=confidence.address,
        ),
        (3, 4, 4),
        "float32",
        first_category=0,
        start=True,
        classes=3,
        size=size,
    )
    host_device.prepare("escnet_upsample_argmax")

    def work() -> None:
        host_device.upload(logits.address, given, 3 * 16 * 4, stream)
        host_device.launch(launch, stream)
        host_device.download(back, labels.address, 6 * 7, stream)

    with host_device.capture(stream, work) as graph:
        assert [one.name for one in graph.log] == ["upload", "launch", "download"]
        for seed in range(2):
            values = np.random.default_rng(seed).normal(0, 1, (3, 4, 4)).astype(np.float32)
            given.array[:] = values.reshape(-1).view(np.uint8)
            graph.launch(stream)
            stream.synchronize()
            want = UpsampleArgmax(*size, (4, 4), 3, threads=1)
            want.add(0, values)
            np.testing.assert_array_equal(back.array.reshape(size), want.result()[0])


def test_a_download_that_nobody_waited_for_is_not_there(lazy: HostDevice) -> None:
    stream, event = lazy.stream(), lazy.event()
    memory, back = lazy.allocate(4), lazy.allocate_host(4)
    lazy.fill(memory.address, 1, 4, stream)
    lazy.download(back, memory.address, 4, stream)
    lazy.record(event, stream)
    lazy.fill(memory.address, 2, 4, stream)
    assert back.array.tolist() != [1, 1, 1, 1]
    event.synchronize()
    assert back.array.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("waits", [True, False])
def test_a_stream_gets_what_another_makes_only_if_it_waits(lazy: HostDevice, waits: bool) -> None:
    maker, taker, event = lazy.stream(), lazy.stream(), lazy.event()
    memory, back = lazy.allocate(4), lazy.allocate_host(4)
    lazy.fill(memory.address, 1, 4, maker)
    lazy.record(event, maker)
    if waits:
        lazy.wait(taker, event)
    lazy.download(back, memory.address, 4, taker)
    taker.synchronize()
    assert (back.array.tolist() == [1, 1, 1, 1]) is waits


def test_events_tell_the_time_between_them(host_device: HostDevice) -> None:
    stream = host_device.stream()
    first, last = host_device.event(timing=True), host_device.event(timing=True)
    host_device.record(first, stream)
    host_device.record(last, stream)
    stream.synchronize()
    assert last.since(first) >= 0
    with pytest.raises(DeviceError, match="not reached"):
        host_device.event(timing=True).since(first)
    with pytest.raises(DeviceError, match="without timing"):
        host_device.event().since(first)


def test_memory_that_was_freed_is_not_touched(host_device: HostDevice) -> None:
    memory = host_device.allocate(8)
    address = memory.address
    memory.close()
    memory.close()
    assert host_device.calls("free") == [("free", 8)]
    with pytest.raises(DeviceError, match="closed"):
        _ = memory.address
    with pytest.raises(DeviceFaultError, match="not allocated, or were freed"):
        fill_and_wait(host_device, address)


def test_memory_is_not_touched_past_its_end(host_device: HostDevice) -> None:
    memory, short = host_device.allocate(8), host_device.allocate_host(4)
    with pytest.raises(DeviceFaultError):
        fill_and_wait(host_device, memory.address + 1)
    with pytest.raises(DeviceError, match="the host memory has 4"):
        host_device.upload(memory.address, short, 8, host_device.stream())


def test_memory_has_an_end(host: HostMachine) -> None:
    device = HostDevice(host, total=1024)
    with device.allocate(257):
        assert device.memory() == (512, 1024)
        with pytest.raises(OutOfDeviceMemory, match="got a request for 513 bytes; 512 are free"):
            device.allocate(513)
    assert device.memory() == (1024, 1024)
    assert device.open == []


@pytest.mark.parametrize("what", ["wait", "allocate", "compile", "isolate"])
def test_what_cannot_be_captured_ends_the_capture(host_device: HostDevice, what: str) -> None:
    stream, outside, memory = host_device.stream(), host_device.event(), host_device.allocate(4)
    host_device.record(outside, host_device.stream())

    def work() -> None:
        host_device.fill(memory.address, 1, 4, stream)
        if what == "wait":
            stream.synchronize()
        elif what == "allocate":
            host_device.allocate(1)
        elif what == "compile":
            host_device.prepare("escnet_ppg")
        else:
            host_device.wait(stream, outside)

    with pytest.raises(DeviceError, match="captured"):
        host_device.capture(stream, work)
    host_device.fill(memory.address, 2, 4, stream)
    stream.synchronize()
    assert ctypes.string_at(memory.address, 4) == b"\x02" * 4


@pytest.mark.parametrize("joins", [True, False])
def test_a_stream_that_joins_a_capture_has_to_come_back(
    host_device: HostDevice, joins: bool
) -> None:
    stream, side, memory = host_device.stream(), host_device.stream(), host_device.allocate(4)
    fork, join = host_device.event(), host_device.event()

    def work() -> None:
        host_device.record(fork, stream)
        host_device.wait(side, fork)
        host_device.fill(memory.address, 3, 4, side)
        if joins:
            host_device.record(join, side)
            host_device.wait(stream, join)

    if not joins:
        with pytest.raises(DeviceError, match="had not come back"):
            host_device.capture(stream, work)
        return
    graph = host_device.capture(stream, work)
    assert ctypes.string_at(memory.address, 4) != b"\x03" * 4
    graph.launch(stream)
    stream.synchronize()
    assert ctypes.string_at(memory.address, 4) == b"\x03" * 4
