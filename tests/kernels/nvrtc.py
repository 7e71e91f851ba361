"""NVRTC as the tests use it: a source in, a cubin out. It needs no GPU."""

import ctypes
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["compile_cubin", "find_nvrtc"]

_OPTIONS = ["-std=c++17", "--gpu-architecture={}"]


@cache
def find_nvrtc() -> bool:
    """Load NVRTC from the packages beside PyTorch, where cuda-bindings does not look for it.

    False where it is not installed.
    """
    packages = importlib.util.find_spec("nvidia")
    if packages is None or importlib.util.find_spec("cuda") is None:
        return False
    for folder in packages.submodule_search_locations or []:
        for library in sorted(Path(folder).glob("cu*/lib/libnvrtc.so.*")):
            ctypes.CDLL(str(library))
            return True
    return False


def compile_cubin(source: str, architecture: str) -> bytes:
    """Compile for ``architecture``, say "sm_86"; a warning fails too, with the compiler's log."""
    find_nvrtc()
    from cuda.bindings import nvrtc

    program = _value(nvrtc.nvrtcCreateProgram(source.encode(), b"kernel.cu", 0, [], []))
    options = [one.format(architecture).encode() for one in _OPTIONS]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    log = bytearray(_value(nvrtc.nvrtcGetProgramLogSize(program)))
    nvrtc.nvrtcGetProgramLog(program, log)
    said = log.rstrip(b"\0\n ").decode()
    if int(status) or said:
        raise RuntimeError(f"NVRTC answers {status}: {said}")
    cubin = bytearray(_value(nvrtc.nvrtcGetCUBINSize(program)))
    _value(nvrtc.nvrtcGetCUBIN(program, cubin))
    _value(nvrtc.nvrtcDestroyProgram(program))
    return bytes(cubin)


def _value(answer: tuple[Any, ...]) -> Any:
    status, *values = answer
    assert int(status) == 0, f"NVRTC answers {status}"
    return values[0] if values else None
