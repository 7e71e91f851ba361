"""Segment images with an ESC-Net bundle, for any list of categories. Needs no PyTorch.

::

    with Segmenter("bundle/") as segmenter:
        vocabulary = segmenter.vocabulary(["cat", "sofa", "wall"])
        result = segmenter("photo.jpg", vocabulary)
        result.overlay().save("photo_overlay.png")
"""

import os

# ONNX Runtime reports sessions and models to its maker from 1.29 on, also on Linux, and looks for
# this once, when it is imported: here, before any module of ours does. Whoever wants that sets it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from .errors import (
    BackendError,
    BundleError,
    BundleFormatError,
    BundleIntegrityError,
    DeviceError,
    EngineMismatchError,
    EscNetError,
    ImageError,
    InputError,
    OutOfDeviceMemory,
    VocabularyError,
)
from .frames import Nv12Frame
from .nv12 import YuvEncoding
from .result import Segmentation
from .segmenter import Segmenter
from .vocabulary import Vocabulary

__all__ = [
    "BackendError",
    "BundleError",
    "BundleFormatError",
    "BundleIntegrityError",
    "DeviceError",
    "EngineMismatchError",
    "EscNetError",
    "ImageError",
    "InputError",
    "Nv12Frame",
    "OutOfDeviceMemory",
    "Segmentation",
    "Segmenter",
    "Vocabulary",
    "VocabularyError",
    "YuvEncoding",
    "__version__",
]


def __getattr__(name: str) -> str:
    """``__version__``, looked up when asked for: it takes longer than any module here."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib.metadata

    try:
        return importlib.metadata.version("escnet-runtime")
    except importlib.metadata.PackageNotFoundError:  # a source tree that is not installed
        return "0+unknown"
