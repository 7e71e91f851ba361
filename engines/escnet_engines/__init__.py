"""Compiles the ONNX graphs of a bundle for a GPU, with TensorRT or TensorRT-RTX; no PyTorch."""

from .build import BuildReport, build_engines
from .errors import BuildError, BuildMemoryError
from .libraries import COMPILERS, open_library
from .library import Library

__all__ = [
    "COMPILERS",
    "BuildError",
    "BuildMemoryError",
    "BuildReport",
    "Library",
    "build_engines",
    "open_library",
]
