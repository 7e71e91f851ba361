"""Compiles the ONNX graphs of a bundle for a GPU, with TensorRT or TensorRT-RTX; no PyTorch.

For a CPU, which runs the graphs as they are, it measures which chunk of categories is fastest.
"""

from .build import BuildReport, build_engines
from .chunk_plan import ChunkSizes, chunk_sizes
from .chunks import ChunkReport, measure_chunks
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
    "ChunkReport",
    "ChunkSizes",
    "Library",
    "build_engines",
    "chunk_sizes",
    "measure_chunks",
    "open_library",
    "plan_build",
]
