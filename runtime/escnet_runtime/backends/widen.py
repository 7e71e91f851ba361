"""ONNX graphs with narrow floating-point types turned into float32, with and without rounding."""

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

__all__ = ["NARROW", "round_nodes", "take_inputs", "widen"]

#: float16 and bfloat16, as ONNX numbers them.
NARROW = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})

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


def widen(graph: GraphProto, narrow: Collection[int] = NARROW) -> None:
    """Make every tensor of the types ``narrow`` float32: weights, values, casts, subgraphs."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in narrow:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in graph.initializer:
        _widen_tensor(tensor, narrow)
    for node in graph.node:
        for attribute in node.attribute:
            _widen_attribute(attribute, narrow)


def _widen_attribute(attribute: AttributeProto, narrow: Collection[int]) -> None:
    if attribute.type == AttributeProto.TENSOR:
        _widen_tensor(attribute.t, narrow)
    elif attribute.type == AttributeProto.GRAPH:
        widen(attribute.g, narrow)
    elif attribute.name in ("to", "dtype") and attribute.i in narrow:
        attribute.i = TensorProto.FLOAT


def _widen_tensor(tensor: TensorProto, narrow: Collection[int]) -> None:
    if tensor.data_type in narrow:
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def round_nodes(model: onnx.ModelProto, narrow: Collection[int] = NARROW) -> onnx.ModelProto:
    """The same model in float32, every result of the types ``narrow`` rounded where it is made.

    Libraries may drop roundings between nodes that they add themselves; they keep these.
    """
    rounded = onnx.shape_inference.infer_shapes(model)
    graph = rounded.graph
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type in narrow
    }
    widen(graph, narrow)
    nodes = [made for node in graph.node for made in _rounding(node, kinds)]
    del graph.node[:]
    graph.node.extend(nodes)
    return rounded


def _rounding(node: NodeProto, kinds: Mapping[str, int]) -> list[NodeProto]:
    if node.op_type in _MOVES or node.op_type == "Constant":
        return [node]
    made = [node]
    for index, name in enumerate(node.output):
        if name in kinds:
            wide, narrow = f"{name}__wide", f"{name}__narrow"
            node.output[index] = wide
            made.append(helper.make_node("Cast", [wide], [narrow], to=kinds[name]))
            made.append(helper.make_node("Cast", [narrow], [name], to=TensorProto.FLOAT))
    return made


def take_inputs(model: onnx.ModelProto, kinds: Mapping[str, int]) -> None:
    """Let ``model`` take inputs of these types, by name: it casts them itself."""
    casts = []
    for value in model.graph.input:
        kind = value.type.tensor_type
        if kinds.get(value.name, kind.elem_type) == kind.elem_type:
            continue
        cast = f"{value.name}__cast"
        for node in model.graph.node:
            for index, name in enumerate(node.input):
                if name == value.name:
                    node.input[index] = cast
        casts.append(helper.make_node("Cast", [value.name], [cast], to=kind.elem_type))
        kind.elem_type = kinds[value.name]
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
