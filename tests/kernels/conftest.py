"""A compiler of kernels for the CPU."""

import shutil

import pytest

from tests.kernels.host import HostCompiler


@pytest.fixture(scope="session")
def host_compiler(tmp_path_factory: pytest.TempPathFactory) -> HostCompiler:
    """The C++ compiler of this machine; skips where there is none."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs a C++ compiler, g++ or clang++, to run kernels on the CPU")
    return HostCompiler(compiler, tmp_path_factory.mktemp("kernels"))
