"""Machines that kernels run on."""

import shutil

import pytest

from tests.kernels.host import HostCompiler
from tests.kernels.machines import GpuMachine, HostMachine, Machine


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


@pytest.fixture(scope="session", params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def machine(request: pytest.FixtureRequest) -> Machine:
    """The CPU, and a GPU where there is one."""
    if request.param == "gpu":
        return GpuMachine()
    found: HostMachine = request.getfixturevalue("host")
    return found
