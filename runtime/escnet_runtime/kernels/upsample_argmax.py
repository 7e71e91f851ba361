"""Launching ``escnet_upsample_argmax``."""

import ctypes
from dataclasses import dataclass

from escnet_runtime.errors import InputError

from .launch import THREADS, FloatType, Launch, blocks, type_code

__all__ = ["UpsampleBuffers", "upsample_argmax_launch"]

_MOST_CATEGORIES = 65536  # of a 16-bit label map


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
    integers = (type_code(logit_type), label_bytes, n, first_category, start, h, w, height, width)
    return Launch(
        kernel="escnet_upsample_argmax",
        grid=(blocks(pixels), 1, 1),
        block=(THREADS, 1, 1),
        arguments=(
            *map(ctypes.c_void_p, pointers),
            *map(ctypes.c_int, integers),
            ctypes.c_double(h / height),
            ctypes.c_double(w / width),
        ),
    )
