"""Numerical traps: values that overflow float16, or come near its limit, on real images.

A float16 graph is run in float32 under the names of its own tensors, and the largest magnitude of
each float16 tensor is recorded. So a value that a device would turn into an infinity is found on
any machine, even on a CPU that computes in a wider type and would show nothing.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime as ort
from onnx import NodeProto, TensorProto, helper, numpy_helper

from escnet_runtime.backends.base import Array
from escnet_runtime.backends.widen import widen

from .nodes import narrow_tensors, nodes_by_block
from .plan import ENCODER

__all__ = ["FLOAT16_LIMIT", "NEAR", "Trap", "find_traps", "worst_first"]

#: The largest float16.
FLOAT16_LIMIT: Final = 65504.0
#: A value above this share of the limit counts as near it: other images may exceed the limit.
NEAR: Final = 0.1
_MAXIMUM: Final = "__largest"
_QUIET: Final = 3
# These operators only move values, which are checked where they are computed.
_MOVES: Final = frozenset(
    [
        *("Cast", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Pad"),
        *("Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where"),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trap:
    """A float16 tensor whose values are too large for float16, or nearly so.

    Attributes:
        block: a graph, or a part of the image encoder.
        tensor: its name in the ONNX file; of a weight, the weight's.
        op: the operator that computes it; "input" or "weight" if none does.
        near: the last weight used at or before it, by its name in the model.
        largest: its largest magnitude on the images; infinite for a weight beyond the limit.
    """

    block: str
    tensor: str
    op: str
    near: str
    largest: float

    @property
    def overflows(self) -> bool:
        """Whether a device would compute an infinity."""
        return not self.largest <= FLOAT16_LIMIT

    def why(self) -> str:
        """A clause for people."""
        where = f"{self.op} {self.tensor!r}" + (f" (after {self.near})" if self.near else "")
        if not np.isfinite(self.largest):
            return f"{where} is beyond float16's {FLOAT16_LIMIT:,.0f}"
        verb = "exceeds" if self.overflows else "is near"
        return f"{where} reaches {self.largest:,.0f}, which {verb} float16's {FLOAT16_LIMIT:,.0f}"


def find_traps(graph: str, path: Path, feeds: Iterable[Mapping[str, Array]]) -> list[Trap]:
    """Tensors of a float16 graph above :data:`NEAR` of the limit, in the order they are computed.

    If weights are infinite, only these are returned.

    Args:
        graph: its name.
        path: its file; tensors of other types in it are ignored.
        feeds: inputs in float32 (and int32), one run each.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    narrow = narrow_tensors(model.graph)
    places = dict(_places(graph, model.graph, narrow))
    infinite = _infinite_weights(model.graph)
    traps = [
        Trap(block=block, tensor=name, op="weight", near=near, largest=np.inf)
        for node, block, near in nodes_by_block(graph, model.graph)
        for name in node.input
        if name in infinite
    ]
    if traps or not places:
        return traps  # everything that follows an infinite weight would be reported too
    _with_largest(model.graph, places)
    found = _largest(model, feeds)
    return [
        Trap(block=block, tensor=tensor, op=op, near=near, largest=found[tensor])
        for tensor, (block, op, near) in places.items()
        if not found[tensor] <= NEAR * FLOAT16_LIMIT
    ]


def _infinite_weights(graph: onnx.GraphProto) -> set[str]:
    return {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT16
        and not np.isfinite(numpy_helper.to_array(tensor)).all()
    }


def _places(
    name: str, graph: onnx.GraphProto, narrow: set[str]
) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """Each tensor to check: its name, and its block, operator and last weight used before it."""
    first = f"{ENCODER}.stem" if name == ENCODER else name
    for port in graph.input:
        if port.name in narrow:
            yield port.name, (first, "input", "")
    for node, block, near in nodes_by_block(name, graph):
        if node.op_type not in _MOVES:
            yield from ((out, (block, node.op_type, near)) for out in node.output if out in narrow)


def _with_largest(graph: onnx.GraphProto, places: Iterable[str]) -> None:
    """Widen ``graph`` in place and make the largest magnitudes of ``places`` its outputs."""
    widen(graph, {TensorProto.FLOAT16})
    del graph.output[:]
    for name in places:
        largest = f"{name}{_MAXIMUM}"
        graph.node.extend(_largest_of(name, largest))
        graph.output.append(helper.make_tensor_value_info(largest, TensorProto.FLOAT, []))


def _largest_of(name: str, output: str) -> list[NodeProto]:
    return [
        helper.make_node("Abs", [name], [f"{output}_abs"]),
        helper.make_node("ReduceMax", [f"{output}_abs"], [output], keepdims=0),
    ]


def _largest(model: onnx.ModelProto, feeds: Iterable[Mapping[str, Array]]) -> dict[str, float]:
    options = ort.SessionOptions()
    options.log_severity_level = _QUIET
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in model.graph.output]
    largest = np.zeros(len(names))
    for feed in feeds:
        values = np.array(session.run(names, dict(feed)), np.float64)
        largest = np.fmax(largest, np.where(np.isnan(values), np.inf, values))
    return {
        name.removesuffix(_MAXIMUM): float(value)
        for name, value in zip(names, largest, strict=True)
    }


def worst_first(traps: Sequence[Trap]) -> list[Trap]:
    """The largest trap of each block, the worst block first."""
    worst: dict[str, Trap] = {}
    for trap in traps:
        if trap.block not in worst or trap.largest > worst[trap.block].largest:
            worst[trap.block] = trap
    return sorted(worst.values(), key=lambda trap: -trap.largest)
