"""What the NVIDIA driver says of the GPU, asked through its own library: nothing to install."""

import ctypes
import sys
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Gpu", "find_gpu"]

_LIBRARY: Final = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
# cuda.h: CUdevice_attribute.
_MAJOR, _MINOR = 75, 76


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """The first GPU that CUDA_VISIBLE_DEVICES leaves visible.

    Attributes:
        target: its compute capability, such as "sm_86".
        driver: CUDA version of its driver, such as "13.0".
    """

    target: str
    driver: str


def find_gpu() -> Gpu | None:
    """Ask the driver; None if there is no driver or no GPU."""
    try:
        cuda = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
    version = _integer(cuda.cuDriverGetVersion)
    if version is None or cuda.cuInit(0) != 0:
        return None
    device = _integer(cuda.cuDeviceGet, 0)
    if device is None:
        return None
    major = _integer(cuda.cuDeviceGetAttribute, _MAJOR, device)
    minor = _integer(cuda.cuDeviceGetAttribute, _MINOR, device)
    if major is None or minor is None:
        return None
    return Gpu(target=f"sm_{major}{minor}", driver=f"{version // 1000}.{version % 1000 // 10}")


def _integer(function: Any, *arguments: int) -> int | None:
    """The integer a driver function writes through its first argument; None if it failed."""
    value = ctypes.c_int()
    failed = function(ctypes.byref(value), *arguments) != 0
    return None if failed else value.value
