"""NVIDIA's compiler on the CPU, and a bundle with engines that it built once."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from escnet_engines import Library, build_engines, open_library
from escnet_runtime.bundle import Bundle
from escnet_runtime.engine_record import EngineRecord
from tests.engines.bundles import MATMUL, STATIC, write_bundle

__all__ = ["Built"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """A bundle with engines, and the processor time that compiling them took."""

    root: Path
    record: EngineRecord
    cpu_seconds: float


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


@pytest.fixture(scope="session")
def tiny_built(rtx: Library, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """``tiny`` as it is exported at fp16, with engines for one GPU. Do not change it."""
    root = tmp_path_factory.mktemp("tiny") / "bundle"
    shutil.copytree(tiny_bundle, root)
    start = time.process_time()
    record = build_engines(Bundle.open(root), rtx, target="sm_86").record
    return Built(root=root, record=record, cpu_seconds=time.process_time() - start)


@pytest.fixture
def built_copy(built: Path, tmp_path: Path) -> Bundle:
    """A copy of it that a test may damage."""
    return Bundle.open(Path(shutil.copytree(built, tmp_path / "bundle")))


@pytest.fixture
def plain(tmp_path: Path) -> Bundle:
    """The same bundle without engines."""
    return write_bundle(tmp_path / "plain", {"scores": MATMUL, "fuse": STATIC})
