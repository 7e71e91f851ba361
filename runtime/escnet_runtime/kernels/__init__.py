"""CUDA kernels of the GPU runtime: their sources, and how each is launched.

The sources lie beside this file and need no CUDA header, so NVRTC compiles them where no CUDA
toolkit is installed. Compile them without ``--use_fast_math``. A :class:`Launch` holds what
``cuLaunchKernel`` takes; nothing here touches a GPU.
"""

import ctypes
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal, TypeAlias, get_args

from escnet_runtime.errors import InputError
from escnet_runtime.ppg import MAX_PIXELS, PpgConstants

__all__ = [
    "KERNELS",
    "FloatType",
    "Launch",
    "PpgBuffers",
    "UpsampleBuffers",
    "kernel_source",
    "ppg_launch",
    "upsample_argmax_launch",
]

FloatType: TypeAlias = Literal["float32", "float16", "bfloat16"]
Argument: TypeAlias = ctypes.c_void_p | ctypes.c_int | ctypes.c_float | ctypes.c_double

KERNELS = {"escnet_ppg": "ppg.cu", "escnet_upsample_argmax": "upsample_argmax.cu"}
"""Kernel → the file that defines it; ``floats.cuh`` stands before each."""

_FLOAT_TYPES: tuple[str, ...] = get_args(FloatType)  # the order of the enumerations in the sources
_WARP = 32
_PIXELS_A_BLOCK = 256
_MOST_CATEGORIES = 65536  # of a 16-bit label map


@dataclass(frozen=True, kw_only=True, eq=False)
class Launch:
    """A kernel with its grid, its block and its arguments, in the order of the source."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: tuple[Argument, ...]

    def addresses(self) -> "ctypes.Array[ctypes.c_void_p]":
        """The addresses of the arguments, ``kernelParams`` of ``cuLaunchKernel``.

        They point into this object: keep it until the launch has returned.
        """
        pointers = [ctypes.addressof(one) for one in self.arguments]
        return (ctypes.c_void_p * len(pointers))(*pointers)


@dataclass(frozen=True, kw_only=True)
class PpgBuffers:
    """Device addresses of contiguous arrays; shapes and types as in ``escnet_runtime.ppg``.

    ``scores`` [N,h,w] may be of any float type. ``active`` holds one int32, the number of
    categories in use: those from there on get no prompt and their scores are not read. 0 (no
    address) stands for all N. It is read when the kernel runs, so a captured launch serves any
    number up to N.
    """

    scores: int
    active: int
    points: int
    point_labels: int
    regions: int
    probabilities: int


@dataclass(frozen=True, kw_only=True)
class UpsampleBuffers:
    """Device addresses of contiguous arrays; H×W is the size of the image.

    ``logits`` [n,h,w], of any float type, is one chunk of categories. ``active`` holds one int32,
    the number of categories of all chunks together; 0 (no address) counts all that are given.
    ``best`` and ``total``, float32 [H,W], keep what is known between chunks. ``labels`` [H,W] is
    uint8 for up to 256 categories, else uint16; ``confidence`` [H,W] is float16.
    """

    logits: int
    active: int
    best: int
    total: int
    labels: int
    confidence: int


def kernel_source(kernel: str) -> str:
    """The CUDA C++ source that defines ``kernel``; raises InputError for an unknown one."""
    if kernel not in KERNELS:
        raise InputError(f"got kernel {kernel!r}; there are {', '.join(KERNELS)}")
    folder = files(__package__)
    names = ("floats.cuh", KERNELS[kernel])
    return "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names)


def ppg_launch(
    buffers: PpgBuffers, shape: tuple[int, int, int], score_type: FloatType, constants: PpgConstants
) -> Launch:
    """Prompts of maps [N,h,w], as ``escnet_runtime.ppg.pseudo_prompts`` of them in float32.

    Points, labels and regions are equal bit for bit; probabilities differ by the rounding of
    ``exp``. Raises InputError for a shape or type that the kernel does not take.
    """
    n, h, w = shape
    if min(shape) < 1 or h * w > MAX_PIXELS or n >= 1 << 31:
        raise InputError(
            f"got maps {list(shape)}; expected [N,h,w] with 1 to {MAX_PIXELS} pixels a map and N "
            "from 1 to 2147483647"
        )
    pointers = (
        buffers.scores,
        buffers.active,
        buffers.points,
        buffers.point_labels,
        buffers.regions,
        buffers.probabilities,
    )
    integers = (_code(score_type), h, w, constants.regions, constants.iterations)
    return Launch(
        kernel="escnet_ppg",
        grid=(n, 1, 1),
        block=(-(-h * w // _WARP) * _WARP, 1, 1),
        arguments=(
            *map(ctypes.c_void_p, pointers),
            *map(ctypes.c_int, integers),
            ctypes.c_float(constants.threshold_offset),
            ctypes.c_float(constants.temperature),
        ),
    )


def upsample_argmax_launch(
    buffers: UpsampleBuffers,
    shape: tuple[int, int, int],
    logit_type: FloatType,
    *,
    first_category: int,
    start: bool,
    classes: int,
    size: tuple[int, int],
) -> Launch:
    """Add a chunk of logits [n,h,w] to the labels and confidences of an image of H×W pixels.

    As ``escnet_runtime.postprocess.UpsampleArgmax.add`` for categories ``first_category`` to
    ``+ n - 1`` of ``classes``: labels are equal, the confidence differs by rounding. ``start`` is
    True for the first chunk of an image. Raises InputError for what the kernel does not take.
    """
    n, h, w = shape
    height, width = size
    pixels = height * width
    if min(*shape, *size) < 1 or pixels >= 1 << 31:
        raise InputError(
            f"got logits {list(shape)} for an image of {height}×{width} pixels; expected every "
            "size to be at least 1, and fewer than 2^31 pixels"
        )
    if first_category < 0 or first_category + n > classes or classes > _MOST_CATEGORIES:
        raise InputError(
            f"got categories {first_category} to {first_category + n - 1} of {classes}; expected "
            f"them within 0 to {classes - 1}, and at most {_MOST_CATEGORIES}"
        )
    pointers = (
        buffers.logits,
        buffers.active,
        buffers.best,
        buffers.total,
        buffers.labels,
        buffers.confidence,
    )
    label_bytes = 1 if classes <= 256 else 2
    integers = (_code(logit_type), label_bytes, n, first_category, start, h, w, height, width)
    return Launch(
        kernel="escnet_upsample_argmax",
        grid=(-(-pixels // _PIXELS_A_BLOCK), 1, 1),
        block=(_PIXELS_A_BLOCK, 1, 1),
        arguments=(
            *map(ctypes.c_void_p, pointers),
            *map(ctypes.c_int, integers),
            ctypes.c_double(h / height),
            ctypes.c_double(w / width),
        ),
    )


def _code(float_type: str) -> int:
    """The number that stands for a type in the sources."""
    if float_type not in _FLOAT_TYPES:
        raise InputError(f"got type {float_type!r}; expected one of {', '.join(_FLOAT_TYPES)}")
    return _FLOAT_TYPES.index(float_type)
