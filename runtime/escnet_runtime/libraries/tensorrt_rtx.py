"""TensorRT-RTX."""

import tensorrt_rtx_bindings

__all__ = ["BINDINGS"]

BINDINGS = tensorrt_rtx_bindings
