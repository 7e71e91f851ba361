"""What is float16 in a graph, and where in the model its nodes come from."""

from collections.abc import Iterator

import onnx
from onnx import NodeProto, TensorProto

from .plan import ENCODER, part_of

__all__ = ["narrow_tensors", "nodes_by_block"]


def narrow_tensors(graph: onnx.GraphProto) -> set[str]:
    """Names of what is float16 in a graph whose shapes and types were inferred."""
    return {
        value.name
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16
    }


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
