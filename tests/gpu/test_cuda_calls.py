"""The pipeline on the real CudaDevice, with a driver of our own that keeps memory on the CPU.

It runs no kernels, so pictures mean nothing; what is shown is that every call of the pipeline is
one that CudaDevice and cuda-bindings take, and that all of it is given back.
"""

from pathlib import Path

from escnet_runtime.device.compile import KernelCompiler
from escnet_runtime.kernels import KERNELS
from tests.device.test_cuda_calls import environment, python

__all__ = ["environment"]  # a fixture

PROGRAM = """
import contextlib, sys, warnings
from pathlib import Path
import numpy as np
from escnet_runtime.bundle import Bundle
from escnet_runtime.device import open_device
from escnet_runtime.device.arrays import DeviceArray
from escnet_runtime.gpu.pipeline import DevicePipeline
from tests.gpu.made_up import made_up_manifest

warnings.simplefilter("error")

class Nothing:
    name = description = "nothing"
    most_rows, resident_bytes = None, 0
    capturable = sys.argv[2] == "captured"
    def __init__(self, stream): self._stream = stream
    def stream(self): return self._stream
    def scratch_bytes(self): return 1000
    def load(self, *graphs): pass
    def bind(self, graph, inputs, outputs, *, scratch=0): return lambda: None
    untidy = False
    def tidying(self): return contextlib.nullcontext()
    def unload(self): pass
    def close(self): pass

manifest = made_up_manifest(Bundle.open(Path(sys.argv[1])).manifest)
image, text = np.zeros((11, 9, 3), np.uint8), np.ones((5, 6), np.float32)
with open_device() as device, device.stream() as stream:
    before = device.memory()[0]
    pipeline = DevicePipeline(device, Nothing(stream), manifest, chunk=8)
    print(pipeline.plan(5, (11, 9)).categories)
    flights = [pipeline.submit(image, text) for _ in range(3)]
    print(*[pipeline.finish(flight).labels.shape for flight in flights])
    array = DeviceArray.of(device, device.allocate(image.nbytes), image.shape, np.uint8)
    print(pipeline.finish(pipeline.submit(pipeline.taken(array), text)).image.shape)
    print(len(pipeline.profile(image, text).device) > 10)
    pipeline.close()
    del array
    print(before == device.memory()[0])
"""


def test_cuda_takes_every_call(environment: dict[str, str], tiny_bundle: Path) -> None:
    compiler = KernelCompiler(90, Path(environment["ESCNET_CACHE"]))
    for kernel in KERNELS:  # NVRTC would ask this driver for more
        compiler.compile(kernel)
    for way in ("captured", "eager"):
        done = python(environment, "-c", PROGRAM, str(tiny_bundle), way)
        assert done.stdout.splitlines() == [
            "8",
            "(11, 9) (11, 9) (11, 9)",
            "(11, 9, 3)",
            "True",
            "True",
        ], done.stderr
