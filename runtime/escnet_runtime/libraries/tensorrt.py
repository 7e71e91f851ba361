"""TensorRT 10 and 11."""

import tensorrt

__all__ = ["BINDINGS"]

BINDINGS = tensorrt
