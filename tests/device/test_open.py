"""Without a GPU, a driver or cuda-bindings, opening a device says what is missing."""

import ctypes
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from escnet_runtime.backends_here import backends_here
from escnet_runtime.device import open_device
from escnet_runtime.errors import DeviceError
from escnet_runtime.nvidia import broken_driver, find_gpu


class Driver:
    """The driver's library, which starts with a status and shows a number of GPUs."""

    def __init__(self, status: int = 0, gpus: int = 1) -> None:
        self._status, self._gpus = status, gpus

    def cuDriverGetVersion(self, out: Any) -> int:
        return _write(out, 13000)

    def cuInit(self, flags: int) -> int:
        return self._status

    def cuDeviceGet(self, out: Any, ordinal: int) -> int:
        return _write(out, 0) if ordinal < self._gpus else 101

    def cuDeviceGetAttribute(self, out: Any, attribute: int, device: int) -> int:
        return _write(out, {75: 9, 76: 0}[attribute])

    def cuDeviceGetName(self, out: Any, length: int, device: int) -> int:
        return 0

    def cuDeviceGetUuid(self, out: Any, device: int) -> int:
        return 0


def _write(out: Any, value: int) -> int:
    ctypes.cast(out, ctypes.POINTER(ctypes.c_int))[0] = value
    return 0


@pytest.mark.parametrize(
    ("driver", "message"),
    [
        (Driver(status=100), r"\(cuInit returns 100, no GPU; .*CUDA_VISIBLE_DEVICES"),
        (Driver(status=34), "CUDA's stub: install the driver itself"),
        (Driver(status=803), "restart after an update"),
        (Driver(status=999), "cuInit returns 999, see CUresult"),
        (Driver(gpus=0), "driver that shows no GPU; see what nvidia-smi shows"),
    ],
)
def test_a_driver_without_a_gpu_says_why(
    driver: Driver, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: driver)
    with pytest.raises(DeviceError, match=message):
        open_device()
    assert find_gpu() is None


@pytest.mark.parametrize("status", [802, 803, 999])
def test_a_broken_driver_is_told_from_no_gpu(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for fine in (Driver(), Driver(status=34), Driver(status=100)):
        monkeypatch.setattr(ctypes, "CDLL", lambda _, driver=fine: driver)
        assert broken_driver() is None
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Driver(status=status))
    said = f"got an NVIDIA driver that does not start (cuInit returns {status}, "
    assert (broken_driver() or "").startswith(said)
    lacks = {one.name: one.lacks or "" for one in backends_here(Path("bundle"), (), ())}
    assert all(lacks[name].startswith(said) for name in ("tensorrt", "onnxruntime-cuda"))


def test_without_a_driver_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(DeviceError, match=r"got no NVIDIA driver \(.*; install the driver"):
        open_device()


def test_without_cuda_bindings_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Driver())
    monkeypatch.setitem(sys.modules, "cuda", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    monkeypatch.delitem(sys.modules, "escnet_runtime.device.cuda", raising=False)
    with pytest.raises(DeviceError, match=r"a GPU \(sm_90\) and no cuda.*escnet-runtime\[cuda\]"):
        open_device()


def test_cuda_bindings_that_do_not_load_are_an_error_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Driver())
    monkeypatch.setitem(sys.modules, "cuda.bindings", ModuleType("cuda.bindings"))  # a part of it
    for loaded in ("cuda.bindings.driver", "escnet_runtime.device.cuda"):
        monkeypatch.delitem(sys.modules, loaded, raising=False)
    with pytest.raises(DeviceError, match=r"do not load: cannot import name 'driver'.* anew"):
        open_device()


def test_looking_for_a_device_ends() -> None:
    """Whatever this machine has; libraries of CUDA may hang without a driver."""
    program = (
        "from escnet_runtime.device import open_device\n"
        "from escnet_runtime.errors import DeviceError\n"
        "for _ in range(2):\n"
        "    try:\n"
        "        open_device().close()\n"
        "    except DeviceError as error:\n"
        "        print(error)\n"
    )
    subprocess.run([sys.executable, "-c", program], timeout=60, check=True)
