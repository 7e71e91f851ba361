"""The example for PyCUDA runs, on a device on the CPU and with a PyCUDA that has what it uses."""

import runpy
import sys
from types import ModuleType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pytest

from escnet_runtime.device.base import Stream
from tests.device.host_device import HostDevice
from tests.kernels.machines import HostMachine
from tests.shared import ROOT

EXAMPLE = ROOT / "runtime" / "examples" / "pycuda_frames.py"


class Pycuda:
    """Arrays of NumPy, lent to the device, and a stream of the device's."""

    def __init__(self, device: HostDevice) -> None:
        pycuda = self

        class _Stream:
            def __init__(self) -> None:
                self._stream: Stream = device.stream()
                self.handle = self._stream.handle

            def synchronize(self) -> None:
                self._stream.synchronize()

        class _GpuArray:
            def __init__(
                self, shape: tuple[int, ...], dtype: type, *, gpudata: int, base: object
            ) -> None:
                self.shape, self.dtype = shape, np.dtype(dtype)
                self.gpudata, self.base = gpudata, base

            @classmethod
            def to_gpu_async(cls, array: npt.NDArray[Any], *, stream: _Stream) -> Self:
                return cls(array.shape, array.dtype.type, gpudata=device.lend(array), base=array)

            def get_async(self, *, stream: _Stream) -> npt.NDArray[Any]:
                host = device.allocate_host(int(np.prod(self.shape)) * self.dtype.itemsize)
                device.download(host, self.gpudata, host.array.nbytes, pycuda.own(stream))
                return host.array.view(self.dtype).reshape(self.shape)

            @property
            def __cuda_array_interface__(self) -> dict[str, Any]:
                data = (self.gpudata, False)
                rest = {"strides": None, "stream": None, "version": 3}
                return {"shape": self.shape, "typestr": self.dtype.str, "data": data, **rest}

        package, self.driver = ModuleType("pycuda"), ModuleType("pycuda.driver")
        array = ModuleType("pycuda.gpuarray")
        vars(self.driver).update(Stream=_Stream)
        vars(array).update(GPUArray=_GpuArray, to_gpu_async=_GpuArray.to_gpu_async)
        vars(package).update(driver=self.driver, gpuarray=array)
        self.modules = {
            "pycuda": package,
            "pycuda.autoprimaryctx": ModuleType("pycuda.autoprimaryctx"),
            "pycuda.driver": self.driver,
            "pycuda.gpuarray": array,
        }

    @staticmethod
    def own(stream: Any) -> Stream:
        found: Stream = stream._stream
        return found


def test_the_example_runs(
    host: HostMachine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device = HostDevice(host)
    for name, module in Pycuda(device).modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("escnet_runtime.device.open_device", lambda: device)
    main = runpy.run_path(str(EXAMPLE))["main"]
    main.__globals__["FRAME"] = (12, 20)
    main(frames=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["frame 0", "frame 1"]
    assert all(sum(map(int, line.split("[")[1][:-1].split(","))) == 240 for line in lines)
    assert [one.name for one in device.log if one.name in ("launch", "synchronize")] == [
        "launch",
        "synchronize",
    ] * 2
