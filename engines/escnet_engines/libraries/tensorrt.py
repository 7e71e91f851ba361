"""TensorRT 10 (JetPack 6, from 10.12) and 11."""

import tensorrt

from ..library import Library

__all__ = ["LIBRARY"]

LIBRARY = Library("tensorrt", tensorrt)
