"""What every test shares: a bundle, a device on the CPU, a cache, and GPU tests that skip."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from escnet_runtime.device import Device, open_device
from escnet_runtime.native import native_library, native_status
from tests.device.host_device import HostDevice
from tests.kernels.host import HostCompiler
from tests.kernels.machines import HostMachine

# How long an example takes says more of what else the machine does than of the code.
hypothesis.settings.register_profile("no-deadline", deadline=None)
hypothesis.settings.load_profile("no-deadline")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default preset at fp16 with seeded random weights, exported once. Do not change it."""
    from escnet.build import build_model
    from escnet.presets import preset
    from escnet_export import export_bundle
    from escnet_runtime.manifest import Precision

    output = tmp_path_factory.mktemp("bundles") / "tiny-fp16"
    export_bundle(
        build_model(preset("tiny")),
        output,
        precision=Precision.FP16,
        weights="seeded random (seed 0)",
        trained=False,
        check_categories=(2,),
    )
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
    import torch  # slow to import: only where a collected test asks for a GPU

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, none is visible"))
