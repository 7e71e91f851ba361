"""bf16 on a CPU: the same graph in float32, every bf16 result rounded to bf16 where it is made.

ONNX Runtime 1.32's CPU provider has no bf16 kernels (``Could not find an implementation for
Conv(22)``). What fp16 graphs are there, float32 arithmetic with results rounded, is made here for
bf16, so that a bf16 bundle can be checked and used on any machine, slowly.
"""

import onnx
from onnx import TensorProto

from .widen import round_nodes

__all__ = ["emulate_bf16"]


def emulate_bf16(model: bytes) -> bytes:
    """A serialised float32 model that rounds where ``model`` computes in bf16."""
    proto = onnx.load_model_from_string(model)
    emulated: bytes = round_nodes(proto, (TensorProto.BFLOAT16,)).SerializeToString()
    return emulated
