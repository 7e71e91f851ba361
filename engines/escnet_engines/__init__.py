"""Compiles the ONNX graphs of a bundle for a GPU, with TensorRT or TensorRT-RTX; no PyTorch."""

from .build import BuildReport, build_engines
from .errors import BuildError, BuildMemoryError
from .libraries import COMPILERS, open_library
from .library import Library
from .plan import BuildPlan, plan_build

__all__ = [
    "COMPILERS",
    "BuildError",
    "BuildMemoryError",
    "BuildPlan",
    "BuildReport",
    "Library",
    "build_engines",
    "open_library",
    "plan_build",
]
