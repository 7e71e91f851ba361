"""CUDA kernels of the GPU runtime: their sources, and how each is launched.

The sources lie beside this file and need no CUDA header, so NVRTC compiles them where no CUDA
toolkit is installed. Compile them without ``--use_fast_math``. A :class:`Launch` holds what
``cuLaunchKernel`` takes; nothing here touches a GPU.
"""

from importlib.resources import files

from escnet_runtime.errors import InputError

from .canvas import canvas_launch
from .launch import FloatType, Launch
from .ppg import PpgBuffers, PpgParts, ppg_launch
from .preprocess import (
    DeviceImage,
    Layout,
    PreprocessPlan,
    normalise_launch,
    nv12_rgb_launch,
    preprocess_plan,
    resize_launch,
)
from .sums import accumulate_launch, group_weights_launch
from .upsample_argmax import UpsampleBuffers, upsample_argmax_launch

__all__ = [
    "KERNELS",
    "DeviceImage",
    "FloatType",
    "Launch",
    "Layout",
    "PpgBuffers",
    "PpgParts",
    "PreprocessPlan",
    "UpsampleBuffers",
    "accumulate_launch",
    "canvas_launch",
    "group_weights_launch",
    "kernel_source",
    "normalise_launch",
    "nv12_rgb_launch",
    "ppg_launch",
    "preprocess_plan",
    "resize_launch",
    "upsample_argmax_launch",
]

KERNELS = {
    "escnet_accumulate": ("sums.cu",),
    "escnet_canvas": ("floats.cuh", "bilinear.cuh", "canvas.cu"),
    "escnet_group_weights": ("sums.cu",),
    "escnet_normalise": ("preprocess.cu",),
    "escnet_nv12_rgb": ("preprocess.cu",),
    "escnet_ppg": ("floats.cuh", "ppg.cu"),
    "escnet_resize": ("preprocess.cu",),
    "escnet_upsample_argmax": ("floats.cuh", "bilinear.cuh", "upsample_argmax.cu"),
}
"""Kernel → the files that define it, in order."""


def kernel_source(kernel: str) -> str:
    """The CUDA C++ source that defines ``kernel``; raises InputError for an unknown one."""
    if kernel not in KERNELS:
        raise InputError(f"got kernel {kernel!r}; there are {', '.join(KERNELS)}")
    folder = files(__package__)
    return "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in KERNELS[kernel])
