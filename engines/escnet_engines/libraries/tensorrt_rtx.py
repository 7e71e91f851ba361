"""TensorRT-RTX: compiles for other GPUs too, and without one."""

import tensorrt_rtx_bindings

from ..library import Library

__all__ = ["LIBRARY"]

LIBRARY = Library("tensorrt-rtx", tensorrt_rtx_bindings)
