"""A float16 graph in float32 under its own names, and where in the model its nodes come from."""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from .plan import ENCODER, part_of

__all__ = ["narrow_tensors", "nodes_by_block", "widen"]


def narrow_tensors(graph: onnx.GraphProto) -> set[str]:
    """Names of what is float16 in a graph whose shapes and types were inferred."""
    return {
        value.name
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16
    }


def widen(graph: onnx.GraphProto) -> None:
    """Make everything that is float16 in ``graph`` float32, in place."""
    narrow = narrow_tensors(graph)
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.name in narrow:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _widen_tensor(attribute.t)
            elif attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT


def nodes_by_block(name: str, graph: onnx.GraphProto) -> Iterator[tuple[NodeProto, str, str]]:
    """Each node with its block and the last weight that was used up to there.

    Args:
        name: of the graph.
        graph: as the exporter writes it: its nodes are in the order of the model's own code, and
            weights that were not folded into others have the model's names.
    """
    weights = {tensor.name for tensor in graph.initializer if tensor.name.startswith("owner.")}
    block, near = (f"{ENCODER}.stem" if name == ENCODER else name), ""
    for node in graph.node:
        for used in node.input:
            if used in weights:
                near = used.removeprefix("owner.")
                block = part_of(near) if name == ENCODER else name
        yield node, block, near


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT16:
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
