"""How CudaDevice calls the driver: the real cuda-bindings, on a driver of our own for the CPU."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from escnet_runtime.device.compile import KernelCompiler, nvrtc_version
from escnet_runtime.errors import DeviceError
from tests.shared import ROOT

KERNEL = "escnet_upsample_argmax"
PYTEST = ["-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider"]
# Kernels do not run there, and one driver stream cannot tell another's capture.
NEEDS_A_GPU = "kernel or threads or unjoined"

LAUNCH = """
import sys
import numpy as np
from escnet_runtime.device import open_device
from escnet_runtime.device.arrays import DeviceArray
from escnet_runtime.kernels import UpsampleBuffers, upsample_argmax_launch

with open_device() as device, device.stream() as stream:
    array = DeviceArray.of(device, device.allocate(24), (6,), np.uint32, stream=stream)
    nowhere = dict.fromkeys(("active", "best", "total", "labels", "confidence"), 0)
    launch = upsample_argmax_launch(
        UpsampleBuffers(logits=array.address, **nowhere),
        (3, 4, 4), "float32", first_category=0, start=True, classes=3, size=(30, 20),
    )
    with device.capture(stream, lambda: device.launch(launch, stream)) as graph:
        graph.launch(stream)
        print(array.copy_to_host().tolist(), [*launch.grid, *launch.block])
"""

FULL = f"""
import os
from escnet_runtime.device import open_device
from escnet_runtime.errors import DeviceError

with open_device() as device, device.stream() as stream, device.allocate(8) as memory:
    work = lambda: device.fill(memory.address, 0, 8, stream)
    graph = device.capture(stream, work)
    for what, ask in (
        ("module", lambda: device.prepare("{KERNEL}")),
        ("launch", lambda: graph.launch(stream)),
        ("graph", lambda: device.capture(stream, work)),
        ("host", lambda: device.allocate_host(8)),
    ):
        os.environ["FAKE_DRIVER_FULL"] = what
        try:
            ask()
        except DeviceError as error:
            print(what, type(error).__name__, error, sep="|")
        del os.environ["FAKE_DRIVER_FULL"]
        ask()
    graph.close()
"""

FORKED = """
import gc, os, sys
from escnet_runtime.device import open_device
from escnet_runtime.errors import DeviceError

made = [open_device()]
made += [made[0].stream(), made[0].allocate(8), made[0].event()]
child = os.fork()
if not child:
    if sys.argv[1] == "closed":
        for one in reversed(made):
            one.close()
    elif sys.argv[1] == "dropped":
        made.clear()
        gc.collect()
    else:
        try:
            open_device()
        except DeviceError as error:
            print(error)
    sys.stdout.flush()
    os._exit(0)
print(os.waitpid(child, 0)[1])
free = made[0].memory()[0]
made[2].close()
print(made[0].memory()[0] > free)  # the parent has lost nothing
for one in reversed(made):
    one.close()
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables with which a process finds the driver, and a compiled kernel in its cache."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++ to build a driver")
    try:
        nvrtc_version()
    except DeviceError as missing:
        pytest.skip(str(missing))
    folder = tmp_path_factory.mktemp("driver")
    source, library = Path(__file__).with_name("fake_driver.cpp"), folder / "libcuda.so.1"
    flags = ["-std=c++17", "-Wall", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, str(source), "-o", str(library), "-ldl"], check=True)
    KernelCompiler(90, folder / "cache").compile(KERNEL)  # NVRTC would ask this driver for more
    return {
        **os.environ,
        "LD_LIBRARY_PATH": str(folder),
        "ESCNET_CACHE": str(folder / "cache"),
        "PYTHONPATH": str(ROOT),
    }


def python(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a process with that driver."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
        env=environment,
    )


def test_the_tests_of_the_gpu_that_need_no_kernels_pass(environment: dict[str, str]) -> None:
    selection = ["-p", "tests.device.fake_fixtures", "-k", f"not ({NEEDS_A_GPU})"]
    done = python(environment, *PYTEST, *selection, "tests/device/test_cuda.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


def test_a_launch_brings_its_shape_and_its_arguments(environment: dict[str, str]) -> None:
    done = python(environment, "-c", LAUNCH)
    assert done.stdout == "[3, 1, 1, 256, 1, 1] [3, 1, 1, 256, 1, 1]\n", done.stderr


def test_memory_is_not_asked_for_by_allocating_alone(environment: dict[str, str]) -> None:
    """What a smaller chunk may mend is told apart from what it does not."""
    done = python(environment, "-W", "ignore::ResourceWarning", "-c", FULL)
    told = [line.split("|") for line in done.stdout.splitlines()]
    assert [(what, kind) for what, kind, _ in told] == [
        ("module", "OutOfDeviceMemory"),
        ("launch", "OutOfDeviceMemory"),
        ("graph", "DeviceError"),
        ("host", "DeviceError"),
    ], done.stderr
    assert "there is no room for a graph: cuGraphInstantiate fails" in told[2][2]
    assert "cuMemAllocHost of 8 bytes on the host fails" in told[3][2]


def test_a_driver_that_is_too_old_gets_a_sentence(environment: dict[str, str]) -> None:
    program = "from escnet_runtime.device import open_device; open_device()"
    done = python({**environment, "FAKE_DRIVER_VERSION": "12040"}, "-c", program)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "DeviceError: got a driver of CUDA 12.4; cuda-bindings" in last
    assert "update the driver" in last


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_a_forked_child_frees_nothing_and_says_nothing(
    how: str, environment: dict[str, str]
) -> None:
    done = python(environment, "-W", "error", "-c", FORKED, how)
    assert (done.stdout.split(), done.stderr) == (["0", "True"], "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
def test_a_forked_child_is_told_how_to_have_a_gpu(environment: dict[str, str]) -> None:
    done = python(environment, "-c", FORKED, "opened")
    said, *rest = done.stdout.splitlines()
    assert "cuInit returns 3, CUDA was started in the process that this one was forked" in said
    assert "spawn" in said
    assert rest == ["0", "True"], done.stderr
