"""What every test shares: a bundle, a device on the CPU, a cache, and GPU tests that skip."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from escnet_runtime.device import Device, open_device
from escnet_runtime.locks import exclusive
from escnet_runtime.native import native_library, native_status
from tests.device.host_device import HostDevice
from tests.kernels.host import HostCompiler
from tests.kernels.machines import HostMachine
from tests.shared import export_tiny

# How long an example takes says more of what else the machine does than of the code.
hypothesis.settings.register_profile("no-deadline", deadline=None)
hypothesis.settings.load_profile("no-deadline")


#: What a process of the suite may take; a build of a large preset takes the most.
_WORKER_BYTES = 6 << 30
_MOST_WORKERS = 8


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """For ``-n auto``: a process for each core, as far as the memory goes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(_cores(), memory // _WORKER_BYTES, _MOST_WORKERS))


def pytest_configure(config: pytest.Config) -> None:
    """Several processes share the cores: each gets its threads by this, before it starts.

    Each is also told a width of the terminal, which is nobody's: without one tables are whole. And
    what is started in a shell's background ignores Ctrl-C, also in the commands that tests start.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.pop("COLUMNS", None)
    workers = config.getoption("numprocesses", 0) or 1
    if workers > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // workers)))


def _cores() -> int:
    return len(os.sched_getaffinity(0))


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default preset at fp16 with seeded random weights, exported once. Do not change it.

    ``ESCNET_TEST_BUNDLE`` names one that was exported before, for tests where torch is not.
    """
    if "ESCNET_TEST_BUNDLE" in os.environ:
        return Path(os.environ["ESCNET_TEST_BUNDLE"])
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # once for all processes: the folder of their folders
        place = place.parent
    output = place / "bundles" / "tiny-fp16"
    output.parent.mkdir(exist_ok=True)
    with exclusive(output.parent, waiting=lambda: None):
        if not output.is_dir():
            export_tiny(output)
    return output


@pytest.fixture
def bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def host_compiler(tmp_path_factory: pytest.TempPathFactory) -> HostCompiler:
    """g++, whose sanitizer calls the machine knows; skips where there is none."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++ to run kernels on the CPU")
    return HostCompiler(compiler, tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="session")
def host(host_compiler: HostCompiler) -> HostMachine:
    """The CPU, thread by thread."""
    return HostMachine(host_compiler)


@pytest.fixture(params=["lazy", "eager"])
def host_device(request: pytest.FixtureRequest, host: HostMachine) -> HostDevice:
    """A device on the CPU, once as late as a GPU may be and once as early."""
    return HostDevice(host, lazy=request.param == "lazy")


@pytest.fixture(scope="session")
def cuda_device() -> Iterator[Device]:
    """The first GPU, for tests marked ``gpu``."""
    with open_device() as device:
        yield device


@pytest.fixture(params=["numpy", "c"])
def native_form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Prompts and up-sampling in NumPy, and in C where there is a compiler."""
    monkeypatch.setenv("ESCNET_NATIVE", "01"[request.param == "c"])
    if request.param == "c" and native_library() is None:
        pytest.skip(f"needs a C compiler: {native_status().detail}")
    return str(request.param)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache of embeddings and compiled code."""
    monkeypatch.setenv("ESCNET_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked ``gpu`` where PyTorch finds no GPU."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    try:
        import torch  # slow to import: only where a collected test asks for a GPU
    except ModuleNotFoundError:  # as on a device, and so in the environment of `make floors`
        visible = False
    else:
        visible = torch.cuda.is_available()
    if not visible:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, none is visible"))
