"""Tests that need a compiler skip where there is none."""

import shutil

import pytest

from escnet_runtime.native import NativeLibrary, native_library, native_status


@pytest.fixture(scope="session")
def compiler() -> str:
    """The C compiler of this machine."""
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if found is None:
        pytest.skip("needs a C compiler")
    return found


@pytest.fixture(scope="session")
def library(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> NativeLibrary:
    """The library of this process, kept where all tests keep it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ESCNET_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.delenv("ESCNET_NATIVE", raising=False)
        found = native_library()
        assert found is not None, native_status().detail
    return found
