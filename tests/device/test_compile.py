"""Kernels are compiled once on a machine, and what the cache does never stops them."""

import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from escnet_runtime.device import compile as compiling
from escnet_runtime.device.compile import FLAGS, KernelCompiler, nvrtc_version
from escnet_runtime.errors import DeviceError, InputError
from escnet_runtime.kernels import KERNELS, kernel_source

KERNEL = "escnet_upsample_argmax"
ELF = b"\x7fELF"


@pytest.fixture(scope="module", autouse=True)
def _nvrtc() -> None:
    """These need the compiler and no GPU."""
    try:
        nvrtc_version()
    except DeviceError as missing:
        pytest.skip(str(missing))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Counts what is really compiled."""
    names: list[str] = []
    really = compiling._compiled

    def counted(source: str, kernel: str, flags: tuple[str, ...]) -> bytes:
        names.append(kernel)
        return really(source, kernel, flags)

    monkeypatch.setattr(compiling, "_compiled", counted)
    return names


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_compiles_without_a_toolkit_or_a_warning(
    kernel: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert KernelCompiler(86, tmp_path).compile(kernel).startswith(ELF)
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


def test_a_kernel_is_compiled_once(tmp_path: Path, compiled: list[str]) -> None:
    first = KernelCompiler(86, tmp_path).compile(KERNEL)
    assert KernelCompiler(86, tmp_path).compile(KERNEL) == first
    assert compiled == [KERNEL]


def test_the_cache_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESCNET_CACHE", str(tmp_path / "mine"))
    KernelCompiler(86).compile(KERNEL)
    assert len(list((tmp_path / "mine").rglob(f"{KERNEL}-*"))) == 1


@pytest.mark.parametrize("change", ["source", "flags", "architecture", "version"])
def test_what_changes_the_code_changes_the_key(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: list[str]
) -> None:
    KernelCompiler(86, tmp_path).compile(KERNEL)
    if change == "source":
        longer = kernel_source(KERNEL) + "\n"
        monkeypatch.setattr(compiling, "kernel_source", lambda _: longer)
    elif change == "flags":
        monkeypatch.setattr(compiling, "FLAGS", (*FLAGS, "--fmad=false"))
    elif change == "version":
        monkeypatch.setattr(compiling, "nvrtc_version", lambda: "99.0")
    KernelCompiler(80 if change == "architecture" else 86, tmp_path).compile(KERNEL)
    assert compiled == [KERNEL, KERNEL]


@pytest.mark.parametrize("damage", ["empty", "short", "flipped", "folder"])
def test_a_damaged_file_is_replaced(
    damage: str, tmp_path: Path, compiled: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    want = KernelCompiler(86, tmp_path).compile(KERNEL)
    (path,) = tmp_path.rglob(f"{KERNEL}-*")
    content = bytearray(path.read_bytes())
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        content[len(content) // 2] ^= 1
        kept = {"empty": 0, "short": 100, "flipped": len(content)}[damage]
        path.write_bytes(content[:kept])
    assert KernelCompiler(86, tmp_path).compile(KERNEL) == want
    assert "it is compiled anew" in caplog.text
    assert compiled == [KERNEL, KERNEL]
    if damage != "folder":
        assert KernelCompiler(86, tmp_path).compile(KERNEL) == want
        assert compiled == [KERNEL, KERNEL]


def test_a_cache_that_cannot_be_written_is_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert KernelCompiler(86, blocked).compile(KERNEL).startswith(ELF)
    assert "Kernels are not kept" in caplog.text
    assert "Set ESCNET_CACHE to a writable folder" in caplog.text


def test_processes_that_start_together_share_one_cache(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from escnet_runtime.device.compile import KernelCompiler as K;"
        "sys.stdout.buffer.write(K(86, pathlib.Path(sys.argv[1])).compile(sys.argv[2]))"
    )
    command = [sys.executable, "-c", program, str(tmp_path), KERNEL]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    codes = {process.communicate(timeout=120)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(codes) == 1
    files = [one.name for one in tmp_path.rglob("*") if one.is_file()]
    assert len(files) == 1
    assert files[0].startswith(f"{KERNEL}-")


def test_a_gpu_to_come_gets_what_its_driver_compiles(tmp_path: Path) -> None:
    assert b".target sm_" in KernelCompiler(999, tmp_path).compile(KERNEL)


def test_a_gpu_that_is_too_old_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"got a GPU of compute capability 3\.5; NVRTC"):
        KernelCompiler(35, tmp_path)


def test_what_the_compiler_says_is_in_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "kernel_source", lambda name: "__global__ void f() { x = 1; }")
    with pytest.raises(DeviceError, match='identifier "x" is undefined'):
        KernelCompiler(86, tmp_path).compile(KERNEL)
    assert not list(tmp_path.rglob("*-*"))


def test_an_unknown_kernel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got kernel 'nms'"):
        KernelCompiler(86, tmp_path).compile("nms")


def test_a_machine_without_the_compiler_gets_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise RuntimeError("libnvrtc is not there")

    monkeypatch.setattr("cuda.bindings.nvrtc.nvrtcVersion", missing)
    monkeypatch.setattr(compiling, "_load_from_packages", lambda: None)
    with pytest.raises(DeviceError, match=r"install escnet-runtime\[cuda\]"):
        nvrtc_version()


def test_the_compiler_of_the_packages_is_there_before_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """cuda-bindings 13.0 looks for it once: what comes later it does not find."""
    loaded: list[str] = []

    def version() -> tuple[int, int, int]:
        if not loaded:
            raise RuntimeError('Function "nvrtcVersion" not found')
        return 0, 13, 0

    monkeypatch.setattr(compiling, "_load_from_packages", lambda: loaded.append("libnvrtc"))
    monkeypatch.setattr("cuda.bindings.nvrtc.nvrtcVersion", version)
    assert nvrtc_version() == "13.0"
    assert loaded == ["libnvrtc"]


def test_of_several_compilers_that_of_the_bindings_version_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machine code of a newer CUDA than the driver's is nothing for it."""
    for place in ("cu13/lib/libnvrtc.so.13", "cuda_nvrtc/lib/libnvrtc.so.12"):
        path = tmp_path / place
        path.parent.mkdir(parents=True)
        path.touch()
    loaded: list[str] = []
    packages = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: packages)
    monkeypatch.setattr("ctypes.CDLL", loaded.append)
    for version, name in ((12090, "libnvrtc.so.12"), (13000, "libnvrtc.so.13")):
        monkeypatch.setattr("cuda.bindings.driver.CUDA_VERSION", version)
        compiling._load_from_packages()
        assert Path(loaded.pop()).name == name
        assert not loaded
