"""Facts about the GPU from the NVIDIA driver's own library, so nothing has to be installed."""

import ctypes
import sys
import uuid
from dataclasses import dataclass
from typing import Any, Final

from .errors import DeviceError

__all__ = ["Gpu", "broken_driver", "find_gpu", "require_gpu"]

_LIBRARY: Final = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
# cuda.h: CUdevice_attribute.
_MAJOR, _MINOR = 75, 76
_NAME_BYTES: Final = 256
_HIDDEN: Final = "see what nvidia-smi shows, and whether CUDA_VISIBLE_DEVICES hides the GPU"
# cuda.h: CUresult, those that a user can do something about.
_REASONS: Final = {
    3: "CUDA was started in the process that this one was forked from, and does not work in both: "
    "have multiprocessing spawn its processes, or use no GPU before they are forked",
    34: "the library is CUDA's stub: install the driver itself",
    100: f"no GPU; {_HIDDEN}",
    802: "the system is not ready yet: its fabric manager may not run",
    803: "the driver's library and kernel module differ: restart after an update",
    804: "this driver's compatibility package does not support this GPU",
}
#: Of them, those of a machine that has no GPU, or hides it.
_ABSENT: Final = (34, 100)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """The first GPU that CUDA_VISIBLE_DEVICES leaves visible.

    Attributes:
        target: its compute capability, such as "sm_86".
        driver: CUDA version of its driver, such as "13.0".
        name: such as "NVIDIA L4"; None if the driver does not tell.
        uuid: as nvidia-smi and NVML know it, which number GPUs by their slots where CUDA puts the
            fastest first; None if the driver does not tell.
    """

    target: str
    driver: str
    name: str | None = None
    uuid: str | None = None


def find_gpu() -> Gpu | None:
    """Ask the driver; None if there is no driver or no GPU."""
    try:
        return require_gpu()
    except DeviceError:
        return None


def broken_driver() -> str | None:
    """What is said of a driver that does not start, though that is not for want of a GPU.

    None if it starts, if there is none, and if it finds no GPU.
    """
    try:
        status = ctypes.CDLL(_LIBRARY).cuInit(0)
    except OSError:
        return None
    return None if status in (0, *_ABSENT) else _does_not_start(status)


def require_gpu() -> Gpu:
    """Ask the driver.

    Raises:
        DeviceError: what of it is missing, and what to do.
    """
    try:
        cuda = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise DeviceError(
            f"got no NVIDIA driver ({_LIBRARY} cannot be loaded); install the driver, or in a "
            "container start it with its GPUs (docker run --gpus all)"
        ) from error
    version = _integer(cuda.cuDriverGetVersion)
    status = cuda.cuInit(0)
    if version is None or status != 0:
        raise DeviceError(_does_not_start(status))
    device = _integer(cuda.cuDeviceGet, 0)
    if device is None:
        raise DeviceError(f"got an NVIDIA driver that shows no GPU; {_HIDDEN}")
    major = _integer(cuda.cuDeviceGetAttribute, _MAJOR, device)
    minor = _integer(cuda.cuDeviceGetAttribute, _MINOR, device)
    if major is None or minor is None:
        raise DeviceError("got a GPU whose compute capability the driver does not tell")
    return Gpu(
        target=f"sm_{major}{minor}",
        driver=f"{version // 1000}.{version % 1000 // 10}",
        name=_name(cuda, device),
        uuid=_uuid(cuda, device),
    )


def _does_not_start(status: int) -> str:
    reason = _REASONS.get(status, "see CUresult in NVIDIA's documentation")
    return f"got an NVIDIA driver that does not start (cuInit returns {status}, {reason})"


def _name(cuda: Any, device: int) -> str | None:
    text = ctypes.create_string_buffer(_NAME_BYTES)
    failed = cuda.cuDeviceGetName(text, _NAME_BYTES, device) != 0
    return None if failed else text.value.decode("utf-8", "replace") or None


def _uuid(cuda: Any, device: int) -> str | None:
    octets = ctypes.create_string_buffer(16)
    failed = cuda.cuDeviceGetUuid(octets, device) != 0
    return None if failed else f"GPU-{uuid.UUID(bytes=octets.raw)}"


def _integer(function: Any, *arguments: int) -> int | None:
    """The integer a driver function writes through its first argument; None if it failed."""
    value = ctypes.c_int()
    failed = function(ctypes.byref(value), *arguments) != 0
    return None if failed else value.value
