"""bf16 on a CPU: the same graph in float32, every bf16 result rounded to bf16 where it is made.

ONNX Runtime 1.32's CPU provider has no bf16 kernels (``Could not find an implementation for
Conv(22)``). What it does for fp16 itself, compute in float32 and round between operators, is done
here for bf16, so that a bf16 bundle can be checked and used on any machine, slowly.
"""

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

__all__ = ["emulate_bf16"]

# These only move values, which are rounded already.
_MOVES = frozenset(
    [
        "Concat",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "Pad",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
    ]
)


def emulate_bf16(model: bytes) -> bytes:
    """A serialised float32 model that rounds where ``model`` computes in bf16."""
    proto = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(model))
    graph = proto.graph
    rounded = {
        value.name
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16
    }
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in graph.initializer:
        _widen(tensor)
    nodes = [made for node in graph.node for made in _rewrite(node, rounded)]
    del graph.node[:]
    graph.node.extend(nodes)
    emulated: bytes = proto.SerializeToString()
    return emulated


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.BFLOAT16:
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _rewrite(node: NodeProto, rounded: set[str]) -> list[NodeProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR:
            _widen(attribute.t)
        elif attribute.name in ("to", "dtype") and attribute.i == TensorProto.BFLOAT16:
            attribute.i = TensorProto.FLOAT
    if node.op_type in _MOVES or node.op_type == "Constant":
        return [node]
    made = [node]
    for index, name in enumerate(node.output):
        if name in rounded:
            wide, narrow = f"{name}__fp32", f"{name}__bf16"
            node.output[index] = wide
            made.append(helper.make_node("Cast", [wide], [narrow], to=TensorProto.BFLOAT16))
            made.append(helper.make_node("Cast", [narrow], [name], to=TensorProto.FLOAT))
    return made
