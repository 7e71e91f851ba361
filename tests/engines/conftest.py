"""NVIDIA's compiler on the CPU, and a bundle with engines that it built once."""

import shutil
from pathlib import Path

import pytest

from escnet_engines import Library, build_engines, open_library
from escnet_runtime.bundle import Bundle
from tests.engines.bundles import MATMUL, STATIC, write_bundle

__all__: list[str] = []


@pytest.fixture(scope="session")
def rtx() -> Library:
    """TensorRT-RTX, which compiles without a GPU."""
    pytest.importorskip(
        "tensorrt_rtx_bindings", reason="needs TensorRT-RTX: install escnet-engines[tensorrt-rtx]"
    )
    return open_library("tensorrt-rtx")


@pytest.fixture(scope="session")
def built(rtx: Library, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two graphs with engines for two GPUs. Do not change it."""
    root = tmp_path_factory.mktemp("built") / "bundle"
    bundle = write_bundle(root, {"scores": MATMUL, "fuse": STATIC})
    build_engines(bundle, rtx, target="sm_89,sm_86")
    return root


@pytest.fixture
def built_copy(built: Path, tmp_path: Path) -> Bundle:
    """A copy of it that a test may damage."""
    return Bundle.open(Path(shutil.copytree(built, tmp_path / "bundle")))


@pytest.fixture
def plain(tmp_path: Path) -> Bundle:
    """The same bundle without engines."""
    return write_bundle(tmp_path / "plain", {"scores": MATMUL, "fuse": STATIC})
