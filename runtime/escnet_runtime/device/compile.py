"""Kernels from source to machine code, once on a machine.

NVRTC compiles what ships in the wheel for the GPU that is there, and the result is kept in the
user's cache folder. Where a file of it is missing, damaged or cannot be written, the kernel is
compiled again: the cache saves time and decides nothing.
"""

import contextlib
import ctypes
import hashlib
import importlib.util
import logging
import time
from pathlib import Path
from typing import Any, Final

from cuda.bindings import driver, nvrtc

from ..atomic import atomic_file
from ..embedding_cache import default_cache_directory
from ..errors import DeviceError, InputError
from ..kernels import kernel_source

__all__ = ["FLAGS", "KernelCompiler", "nvrtc_version"]

FLAGS: Final = ("--std=c++17",)
"""For all kernels. Never fast-math, which flushes denormal numbers and would change decisions."""

_FOLDER: Final = "kernels-v1"  # another layout gets another name
_DIGEST_BYTES: Final = 32
_log = logging.getLogger(__name__)


class KernelCompiler:
    """Compiles kernels for one architecture. Safe for threads and parallel processes."""

    def __init__(self, architecture: int, directory: Path | None = None) -> None:
        """Compile for a GPU.

        Args:
            architecture: compute capability times ten, for instance 86.
            directory: of the cache; None stands for `default_cache_directory`.

        Raises:
            DeviceError: NVRTC is not installed, or does not know so old a GPU.
        """
        self._version = nvrtc_version()
        self._flags = (*FLAGS, f"--gpu-architecture={_target(architecture, self._version)}")
        self._folder = (directory or default_cache_directory()) / _FOLDER

    def compile(self, kernel: str) -> bytes:
        """Machine code (cubin) or PTX of a kernel in `escnet_runtime.kernels.KERNELS`.

        Raises:
            InputError: there is no such kernel.
            DeviceError: what the compiler said.
        """
        source = kernel_source(kernel)
        path = self._folder / f"{kernel}-{self._key(source)}"
        found = _read(path)
        if found is None:
            started = time.perf_counter()
            found = _compiled(source, kernel, self._flags)
            _log.info("compiled %s in %.1f s", kernel, time.perf_counter() - started)
            _write(path, found)
        return found

    def _key(self, source: str) -> str:
        parts = (source, *self._flags, self._version)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def nvrtc_version() -> str:
    """Version of the NVRTC that is found, such as "13.2"; raises DeviceError if there is none."""
    _load_from_packages()  # before the first call: cuda-bindings 13.0 looks for it once alone
    try:
        major, minor = _value(nvrtc.nvrtcVersion())
    except RuntimeError as missing:
        raise DeviceError(
            "got no NVRTC, CUDA's compiler (libnvrtc cannot be loaded); install "
            "escnet-runtime[cuda], which brings it, or a CUDA toolkit"
        ) from missing
    return f"{major}.{minor}"


def _load_from_packages() -> None:
    """Load NVRTC's library from its Python package, wherever on the path that is.

    cuda-bindings looks into the environment's own folder of packages alone; once a library is
    loaded, it finds it by its name. It takes that of another major version too, whose machine code
    the driver may not load.
    """
    major = driver.CUDA_VERSION // 1000
    found = importlib.util.find_spec("nvidia")
    for folder in (found.submodule_search_locations or []) if found else []:
        for library in sorted(Path(folder).glob(f"*/lib/libnvrtc.so.{major}*")):
            with contextlib.suppress(OSError):  # of another system, or damaged: it is said below
                ctypes.CDLL(str(library))


def _target(architecture: int, version: str) -> str:
    """The best that this NVRTC makes for a GPU: its machine code, or PTX for one to come."""
    known = [int(one) for one in _value(nvrtc.nvrtcGetSupportedArchs())]
    usable = [one for one in known if one <= architecture]
    if not usable:
        raise DeviceError(
            f"got a GPU of compute capability {architecture / 10:.1f}; NVRTC {version} compiles "
            f"for {min(known) / 10:.1f} and newer"
        )
    best = max(usable)
    return f"sm_{best}" if best == architecture else f"compute_{best}"


def _compiled(source: str, kernel: str, flags: tuple[str, ...]) -> bytes:
    program = _value(nvrtc.nvrtcCreateProgram(source.encode(), f"{kernel}.cu".encode(), 0, [], []))
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(flags), [one.encode() for one in flags])
        log = _filled(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
        said = log.rstrip(b"\0\n ").decode(errors="replace")
        if int(status):
            raise DeviceError(f"NVRTC does not compile {kernel} ({' '.join(flags)}):\n{said}")
        if said:
            _log.warning("NVRTC says of %s: %s", kernel, said)
        if "=sm_" in flags[-1]:
            return _filled(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
        return _filled(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _filled(size: Any, fill: Any, program: Any) -> bytes:
    content = bytearray(_value(size(program)))
    _value(fill(program, content))
    return bytes(content)


def _value(answer: tuple[Any, ...]) -> Any:
    """What a function of NVRTC gives besides its status: nothing, one value, or several."""
    status, *values = answer
    if int(status):
        raise DeviceError(f"NVRTC fails: {nvrtc.nvrtcGetErrorString(status)[1].decode()}")
    return values[0] if len(values) == 1 else tuple(values)


def _read(path: Path) -> bytes | None:
    """A cached kernel; None if it is not there or not what was written."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        _log.warning("The cached kernel %s cannot be read (%s); it is compiled anew.", path, error)
        return None
    digest, code = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(code).digest() != digest:
        _log.warning("The cached kernel %s is damaged; it is compiled anew.", path)
        return None
    return code


def _write(path: Path, code: bytes) -> None:
    try:
        with atomic_file(path) as temporary:
            temporary.write_bytes(hashlib.sha256(code).digest() + code)
    except (InputError, OSError) as error:
        _log.warning(
            "Kernels are not kept (%s): they are compiled at every start. Set ESCNET_CACHE to a "
            "writable folder.",
            error,
        )
