"""The device layer: memory with one owner, streams, events, kernels and graphs of one GPU.

:mod:`.base` says what the rest of the runtime may ask of it, :mod:`.cuda` answers on a GPU,
:mod:`.compile` makes and keeps the kernels' machine code, and :mod:`.arrays` exchanges arrays with
PyCUDA, CuPy, PyTorch and others without a copy.
"""

from ..errors import DeviceError
from ..nvidia import require_gpu
from .base import Device

__all__ = ["Device", "open_device"]


def open_device(ordinal: int = 0) -> Device:
    """The GPU of that number, of those that CUDA_VISIBLE_DEVICES shows, in its primary context.

    The driver is looked for before any library is loaded, so a machine without one gets a sentence.

    Raises:
        DeviceError: no GPU, no driver or one that is too old, or cuda-bindings is not installed or
            does not load.
    """
    gpu = require_gpu()
    try:
        from .cuda import CudaDevice
    except ModuleNotFoundError as missing:
        raise DeviceError(
            f"got a GPU ({gpu.target}) and no {missing.name}; install escnet-runtime[cuda]"
        ) from missing
    except (ImportError, OSError) as broken:  # a part of it is missing, or is for another system
        raise DeviceError(
            f"got a GPU ({gpu.target}) and cuda-bindings that do not load: {broken}; install "
            "escnet-runtime[cuda] anew"
        ) from broken
    return CudaDevice(ordinal)
