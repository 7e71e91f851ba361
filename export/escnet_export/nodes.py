"""Which tensors of a graph are float16, and from where in the model its nodes come."""

from collections.abc import Iterator

import onnx
from onnx import NodeProto, TensorProto

from .plan import ENCODER, part_of

__all__ = ["narrow_tensors", "nodes_by_block"]


def narrow_tensors(graph: onnx.GraphProto) -> set[str]:
    """Names of the float16 tensors of a graph whose shapes and types were inferred."""
    return {
        value.name
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16
    }


def nodes_by_block(name: str, graph: onnx.GraphProto) -> Iterator[tuple[NodeProto, str, str]]:
    """Each node with its block and the name of the last weight used at or before it.

    Args:
        name: of the graph.
        graph: as the exporter writes it: nodes are in the order of the model's code, and weights
            that constant folding has left alone have the model's names.
    """
    weights = {tensor.name for tensor in graph.initializer if tensor.name.startswith("owner.")}
    block, near = (f"{ENCODER}.stem" if name == ENCODER else name), ""
    for node in graph.node:
        for used in node.input:
            if used in weights:
                near = used.removeprefix("owner.")
                block = part_of(near) if name == ENCODER else name
        yield node, block, near
