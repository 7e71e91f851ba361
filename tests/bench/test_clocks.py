"""Clocks, throttling and energy of made-up machines."""

import io
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from escnet_bench import nvml
from escnet_bench.clocks import read_clocks
from escnet_bench.energy import Rapl, Tegrastats, module_watts, open_counter
from escnet_bench.latency import floor
from escnet_bench.latency.floor import BOARD_PEAKS, GPU_PEAKS, cpu_peak, gpu_peak, products
from escnet_runtime.nvidia import Gpu


def put(path: Path, text: str) -> None:
    """Write a file and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="ascii")


def test_clocks_are_those_of_the_cores(tmp_path: Path) -> None:
    for core, khz in enumerate((1_800_000, 3_200_000)):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{core}"
        put(folder / "cpufreq/scaling_cur_freq", f"{khz}\n")
        put(folder / "cpufreq/cpuinfo_max_freq", "3500000\n")
        put(folder / "cpufreq/scaling_governor", "schedutil\n")
        put(folder / "thermal_throttle/core_throttle_count", f"{core + 2}\n")
    clocks = read_clocks(tmp_path)
    assert clocks.cpu_mhz == (1800, 3200)
    assert clocks.cpu_max_mhz == 3500
    assert clocks.governor == "schedutil"
    assert clocks.cpu_throttled == 5


def test_without_cpufreq_the_clocks_are_those_of_cpuinfo(tmp_path: Path) -> None:
    put(tmp_path / "proc/cpuinfo", "processor : 0\ncpu MHz\t\t: 2100.5\n\ncpu MHz : 2600.0\n")
    clocks = read_clocks(tmp_path)
    assert clocks.cpu_mhz == (2100.5, 2600.0)
    assert (clocks.cpu_max_mhz, clocks.governor, clocks.cpu_throttled) == (None, None, None)


def test_a_clock_that_is_no_number_is_none(tmp_path: Path) -> None:
    put(tmp_path / "proc/cpuinfo", "processor : 0\ncpu MHz\t\t: unknown\n\ncpu MHz :\n")
    assert read_clocks(tmp_path).cpu_mhz is None


def test_what_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert read_clocks(tmp_path).cpu_mhz is None
    assert open_counter(gpu=None, root=tmp_path) is None


def test_rapl_adds_up_packages_and_wraps_around(tmp_path: Path) -> None:
    zones = [tmp_path / f"sys/class/powercap/intel-rapl:{index}" for index in range(2)]
    for zone in zones:
        put(zone / "energy_uj", "9000000")
        put(zone / "max_energy_range_uj", "10000000")
    put(tmp_path / "sys/class/powercap/intel-rapl:0:0/energy_uj", "77")  # a part of the first
    put(tmp_path / "sys/class/powercap/intel-rapl:2/energy_uj", "78")  # has both
    put(tmp_path / "sys/class/powercap/intel-rapl:2/name", "psys\n")
    counter = open_counter(gpu=None, root=tmp_path)
    assert isinstance(counter, Rapl)
    assert counter.joules() == 0
    put(zones[0] / "energy_uj", "9500000")
    put(zones[1] / "energy_uj", "1000000")
    assert counter.joules() == pytest.approx(0.5 + 2.0)


@pytest.mark.parametrize(
    ("line", "watts"),
    [
        (
            "RAM 2458/7620MB (lfb 4x4MB) CPU [1%@729] GR3D_FREQ 0% tj@45C VDD_IN 5123mW/5000mW "
            "VDD_CPU_GPU_CV 800mW/790mW VDD_SOC 1500mW/1500mW",
            5.123,
        ),
        (
            "GR3D_FREQ 99% VDD_GPU_SOC 12000mW/9000mW VDD_CPU_CV 2000mW/2000mW "
            "VIN_SYS_5V0 4000mW/4000mW",
            18.0,
        ),
        (
            "SOC1@41.25C VDD_GPU_SOC 2340mW/2340mW VDD_CPU_CV 390mW/390mW "
            "VIN_SYS_5V0 4025mW/4025mW NC 0mW/0mW VDDQ_VDD2_1V8AO 301mW/301mW NC 0mW/0mW\n",
            6.755,
        ),
        (
            "GR3D_FREQ 0% tj@41C VDD_GPU 3900mW/3900mW VDD_CPU_SOC_MSS 5100mW/5100mW "
            "VIN_SYS_5V0 4800mW/4800mW VIN 21000mW/20500mW\n",
            21.0,
        ),
        (
            "RAM 1545/31919MB CPU [0%@1190,off] GPU@39.5C CPU@40C GPU 120mW/100mW CPU 468mW/450mW "
            "SOC 937mW/900mW CV 0mW/0mW VDDRQ 155mW/234mW SYS5V 1458mW/1400mW",
            3.138,
        ),
        (
            "RAM 14700/15692MB SWAP 898/8192MB PMIC@100C GPU 463/463 CPU 618/618 SOC 2936/2936 "
            "CV 0/0 VDDRQ 309/309 SYS5V 3306/3306",
            7.632,
        ),
        ("RAM 1/3956MB POM_5V_IN 2532/2458 POM_5V_GPU 0/0 POM_5V_CPU 492/450", 2.532),
        ("VDD_GPU 3900mW/3900mW VDD_OF_THE_FUTURE 5100mW/5100mW", None),
        ("RAM 2458/7620MB", None),
    ],
)
def test_power_of_a_jetson_is_that_of_the_module(line: str, watts: float | None) -> None:
    assert module_watts(line) == watts


def test_power_of_a_jetson_is_integrated(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 3.0, 4.0])
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    stream = io.StringIO("VDD_IN 2000mW/0mW\nnothing\nVDD_IN 6000mW/0mW\n")
    counter = Tegrastats(stream)
    counter.close()  # has read all
    assert counter.joules() == pytest.approx(2 * 2 + 6 * 1)
    assert threading.active_count() >= 1


def test_a_tool_that_ended_by_itself_tells_no_energy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last power would be taken for that of everything that follows."""
    tool = tmp_path / "tegrastats"
    tool.write_text("#!/bin/sh\necho 'VDD_IN 5000mW/0mW'\nread wait < $0.end\n", encoding="utf-8")
    tool.chmod(0o755)
    os.mkfifo(f"{tool}.end")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    counter = open_counter(gpu=None)
    assert isinstance(counter, Tegrastats)
    until(lambda: counter.joules() > 0)
    Path(f"{tool}.end").write_text("now\n", encoding="utf-8")
    until(lambda: math.isnan(counter.joules()))
    counter.close()


def until(holds: Callable[[], bool]) -> None:
    """Wait for it, not for ever."""
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


class FakeNvml(SimpleNamespace):
    """A driver with one GPU that tells everything but its power."""

    class NVMLError(Exception):
        """NVML's own."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    opened = 0

    def nvmlInit(self) -> None:
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return b"NVIDIA H100"

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:
        return {1: 1755, 2: 2619}[kind]

    def nvmlDeviceGetMaxClockInfo(self, handle: int, kind: int) -> int:
        return 1980

    def nvmlDeviceGetTemperature(self, handle: int, kind: int) -> int:
        return 61

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        raise self.NVMLError("not supported")

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> int:
        return 0x01 | 0x04 | 0x40

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        return 12_500


def test_a_gpus_clocks_and_throttling_are_named() -> None:
    fake = FakeNvml()
    [gpu] = nvml.gpu_clocks(fake)
    assert gpu.name == "NVIDIA H100"
    assert (gpu.sm_mhz, gpu.memory_mhz, gpu.max_sm_mhz, gpu.celsius) == (1755, 2619, 1980, 61)
    assert gpu.watts is None
    assert gpu.throttle_reasons == ("power cap", "hardware thermal slowdown")
    assert nvml.gpu_joules(nvml=fake) == 12.5
    assert fake.opened == 0


@pytest.mark.parametrize(
    ("visible", "uuid", "joules"),
    [
        ("", None, 0.0),
        ("1", None, 1.0),
        ("1,0", None, 1.0),
        ("GPU-two", None, 2.0),
        ("7", None, None),
        ("GPU-gone", None, None),
        ("", "GPU-two", 2.0),
        ("0", "GPU-two", 2.0),  # CUDA's first is the fastest, the driver's that of the first slot
        ("0", "GPU-gone", None),
    ],
)
def test_energy_is_that_of_the_gpu_that_computes(
    visible: str, uuid: str | None, joules: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Three(FakeNvml):
        def nvmlDeviceGetCount(self) -> int:
            return 3

        def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
            if uuid != "GPU-two":
                raise self.NVMLError("not found")
            return 2

        def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
            return 1000 * handle

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert nvml.gpu_joules(uuid, Three()) == joules


def test_a_gpu_that_does_not_answer_now_tells_no_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither before a measurement nor behind it: all since the driver was loaded is none of it."""
    answers: list[float | None] = [5000.0, None, 5001.0, None]
    monkeypatch.setattr(nvml, "gpu_joules", lambda uuid: answers.pop(0))
    counter = open_counter(gpu=Gpu(target="sm_90", driver="13.0", uuid="GPU-two"))
    assert counter is not None
    assert counter.source == "NVML: the GPU"
    assert math.isnan(-counter.joules() + counter.joules())
    assert math.isnan(counter.joules())


def test_without_a_driver_there_is_no_gpu_to_ask() -> None:
    class NoDriver(FakeNvml):
        def nvmlInit(self) -> None:
            raise self.NVMLError("library not found")

    no_driver: Any = NoDriver()
    assert nvml.gpu_clocks(no_driver) == ()
    assert nvml.gpu_joules(nvml=no_driver) is None


def test_a_gpu_that_cannot_be_asked_does_not_hide_the_others() -> None:
    class OneIsLost(FakeNvml):
        def nvmlDeviceGetCount(self) -> int:
            return 2

        def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
            if index == 0:
                raise self.NVMLError("GPU is lost")
            return index

        def nvmlDeviceGetName(self, handle: int) -> bytes:
            raise self.NVMLError("not supported")

    one_is_lost: Any = OneIsLost()
    [gpu] = nvml.gpu_clocks(one_is_lost)
    assert (gpu.name, gpu.sm_mhz) == ("unknown", 1755)
    assert nvml.gpu_joules(nvml=one_is_lost) is None  # of the first, not of another


def test_the_floor_is_operations_or_weights() -> None:
    peak = gpu_peak("NVIDIA GeForce RTX 3090")
    assert peak is not None
    assert peak.floor_ms(1062, "fp16", 0) == pytest.approx(15, abs=0.1)
    assert peak.floor_ms(1, "fp16", 936e6) == pytest.approx(1)
    assert peak.floor_ms(1, "int8", 0) is None
    assert gpu_peak("a GPU of the future") is None


@pytest.mark.parametrize(
    ("name", "same_as"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA H100 80GB HBM3", "H100 80GB HBM3"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"),
        ("NVIDIA A100-PCIE-40GB", "A100-PCIE-40GB"),
        ("NVIDIA A100X", None),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "GeForce RTX 4090"),
        ("GeForce RTX 4090", "GeForce RTX 4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
    ],
)
def test_a_gpus_peak_is_that_of_its_whole_name(name: str, same_as: str | None) -> None:
    peak = gpu_peak(name)
    if same_as is None:
        assert peak is None
    else:
        assert peak is not None
        assert peak.device == name
        assert peak.gb_a_second == GPU_PEAKS[same_as].bandwidth
        assert peak.gflop_a_second["fp16"] == 1e3 * GPU_PEAKS[same_as].fp16


@pytest.mark.parametrize(
    ("name", "board", "same_as"),
    [
        ("Orin", "NVIDIA Jetson AGX Orin Developer Kit", "Jetson AGX Orin Developer Kit"),
        ("Orin (nvgpu)", "Jetson AGX Orin Developer Kit", "Jetson AGX Orin Developer Kit"),
        (
            "Orin",
            "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
            "Jetson Orin Nano Developer Kit Super",
        ),
        ("Orin", "NVIDIA Jetson Orin Nano Developer Kit", None),  # its clocks are lower
        ("Orin", None, None),
        ("NVIDIA RTX A6000", "NVIDIA Jetson AGX Orin Developer Kit", None),  # a card in its slot
    ],
)
def test_a_jetsons_peak_is_that_of_its_board(
    name: str, board: str | None, same_as: str | None
) -> None:
    peak = gpu_peak(name, board)
    if same_as is None:
        assert peak is None
    else:
        assert peak is not None
        assert peak.device == board
        assert peak.gb_a_second == BOARD_PEAKS[same_as].bandwidth


def test_a_cpus_peak_is_that_of_the_fastest_library() -> None:
    """All of them compute the same product, and each is one that may be the fastest."""
    pytest.importorskip("torch")
    found = products(64)
    assert set(found) == {"NumPy", "torch", "ONNX Runtime", "OpenVINO"}
    expected = np.asarray(found["NumPy"]())
    for product in found.values():
        np.testing.assert_allclose(np.asarray(product()), expected, rtol=1e-4, atol=1e-4)


def test_a_cpus_peak_is_two_operations_for_each_multiply_add(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the fastest product, the first of each library left out: it may still be loading."""
    clock = [0.0]

    def product(*milliseconds: float) -> Callable[[], float]:
        left = iter(milliseconds)

        def call() -> float:
            clock[0] += next(left) / 1e3
            return 0.0

        return call

    made = {"slow": product(0.1, 8.0, 9.0), "fast": product(0.1, 5.0, 4.0)}
    monkeypatch.setattr(floor, "products", lambda side: made)
    monkeypatch.setattr(floor, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    peak = cpu_peak(side=100, tries=2)
    assert peak.gflop_a_second == {"fp32": pytest.approx(2 * 100**3 / 4e-3 / 1e9)}
    assert "product of 100×100, fast's" in peak.source


def test_a_cpus_peak_is_measured() -> None:
    peak = cpu_peak(side=64, tries=2)
    assert peak.gflop_a_second["fp32"] > 0
    assert peak.floor_ms(1, "fp16", 0) is None
