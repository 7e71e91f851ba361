"""int8 and fp8 by explicit quantise/dequantise (Q/DQ) pairs, calibrated on the user's images.

In each product of activations with constant weights (MatMul, Gemm, convolutions), the activations
get a Q/DQ pair with one scale per tensor, and the weights are stored in eight bits with one scale
per output channel. Both are symmetric (zero point 0), as TensorRT requires. Sums, norms, softmax,
GELU, biases and products of two activations stay in the graph's own type.

ONNX Runtime's own quantiser is not used, because it selects nodes by their type, while the accuracy
gate selects blocks. This one treats float16 and float32 graphs alike.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from escnet_runtime.manifest import Precision

from .nodes import nodes_by_block

__all__ = ["activations", "quantise"]

_Floats = npt.NDArray[np.float32]

_KINDS: Final = ("MatMul", "Gemm", "Conv", "ConvTranspose")
# Scales are stored in the graph's type; below this, float16 is subnormal and loses precision.
_SMALLEST_SCALE: Final = 2.0**-14
# Angles of the positional encoding reach tens of radians, and are float32 at every precision.
_NEVER: Final = "positional_encoding"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Format:
    """An eight-bit number format.

    Attributes:
        name: part of the names of tensors in it.
        kind: ONNX's number of the type.
        largest: the magnitude that the end of a range is mapped to.
        whole: whether its numbers are integers.
    """

    name: str
    kind: int
    largest: int
    whole: bool

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy type."""
        return helper.tensor_dtype_to_np_dtype(self.kind)

    def hold(self, steps: _Floats) -> npt.NDArray[Any]:
        """Round to the nearest representable numbers; values beyond the largest are clipped."""
        nearest = np.rint(steps) if self.whole else steps
        return np.clip(nearest, -self.largest, self.largest).astype(self.dtype)


_FORMATS: Final = {
    Precision.INT8: _Format(name="int8", kind=TensorProto.INT8, largest=127, whole=True),
    # Four bits of exponent, three of mantissa, no infinity: what TensorRT computes with.
    Precision.FP8: _Format(name="float8", kind=TensorProto.FLOAT8E4M3FN, largest=448, whole=False),
}


def activations(graph: onnx.GraphProto) -> list[str]:
    """Activations that :func:`quantise` puts Q/DQ pairs at, in order; each needs a range."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    return list(dict.fromkeys(node.input[0] for node in graph.node if _can(node, weights)))


def quantise(
    graph: str,
    path: Path,
    target: Path,
    ranges: Mapping[str, float],
    *,
    precision: Precision,
    keep: Collection[str] = (),
) -> int:
    """Write ``path`` to ``target`` with Q/DQ pairs; returns the number of quantised products.

    Args:
        graph: its name.
        path: a graph in float16 or float32.
        target: the file to write.
        ranges: the range of each of :func:`activations`, by name.
        precision: int8 or fp8.
        keep: blocks that are not quantised.
    """
    model = onnx.load(str(path))
    editor = _Editor(model.graph, ranges, _FORMATS[precision])
    for node, block, _ in list(nodes_by_block(graph, model.graph)):
        if block not in keep:
            editor.pair(node)
    editor.finish()
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(target))
    return editor.products


class _Editor:
    """Puts Q/DQ pairs into a graph, in place; an activation gets one for all its readers."""

    def __init__(self, graph: onnx.GraphProto, ranges: Mapping[str, float], form: _Format) -> None:
        self._graph, self._ranges, self._form = graph, ranges, form
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._pairs: dict[str, str] = {}
        self._before: dict[str, list[NodeProto]] = {}
        self._stored: set[str] = set()
        self.products = 0

    def pair(self, node: NodeProto) -> None:
        """Quantise a node's activations and weights, if it is a product of the two."""
        if not _can(node, self._weights):
            return
        weight = self._weights[node.input[1]]
        node.input[1] = self._weight(node, weight)
        node.input[0] = self._activation(node, node.input[0], weight.data_type)
        self.products += 1

    def finish(self) -> None:
        """Put nodes into topological order and drop weights that are no longer read."""
        nodes = list(self._graph.node)
        del self._graph.node[:]
        for node in nodes:
            self._graph.node.extend(self._before.get(node.output[0], []))
            self._graph.node.append(node)
        used = {name for node in self._graph.node for name in node.input}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)

    def _activation(self, node: NodeProto, name: str, kind: int) -> str:
        if name not in self._pairs:
            form, narrow = self._form, f"{name}_{self._form.name}"
            scale = np.array(max(self._ranges[name] / form.largest, _SMALLEST_SCALE), np.float32)
            inputs = [
                self._constant(f"{name}_scale", _typed(scale, kind)),
                self._constant(f"{name}_zero", np.zeros((), form.dtype)),
            ]
            self._before.setdefault(node.output[0], []).extend(
                [
                    helper.make_node("QuantizeLinear", [name, *inputs], [narrow], f"{name}_q"),
                    helper.make_node(
                        "DequantizeLinear", [narrow, *inputs], [f"{name}_held"], f"{name}_dq"
                    ),
                ]
            )
            self._pairs[name] = f"{name}_held"
        return self._pairs[name]

    def _weight(self, node: NodeProto, weight: TensorProto) -> str:
        axis, form = _axis(node), self._form
        held = f"{weight.name}_held_{axis}"
        if held not in self._stored:
            self._stored.add(held)
            values = numpy_helper.to_array(weight).astype(np.float32)
            others = tuple(index for index in range(values.ndim) if index != axis)
            scale = np.abs(values).max(axis=others) / form.largest
            scale = _typed(np.maximum(scale, _SMALLEST_SCALE), weight.data_type)
            shape = [1] * values.ndim
            shape[axis] = -1
            inputs = [
                self._constant(
                    f"{held}_{form.name}",
                    form.hold(values / scale.astype(np.float32).reshape(shape)),
                ),
                self._constant(f"{held}_scale", scale),
                self._constant(f"{held}_zero", np.zeros(len(scale), form.dtype)),
            ]
            made = helper.make_node("DequantizeLinear", inputs, [held], f"{held}_dq", axis=axis)
            self._before.setdefault(node.output[0], []).append(made)
        return held

    def _constant(self, name: str, values: npt.NDArray[Any]) -> str:
        self._graph.initializer.append(numpy_helper.from_array(values, name))
        return name


def _can(node: NodeProto, weights: Mapping[str, TensorProto]) -> bool:
    """Whether a node multiplies activations with constant weights of several channels."""
    if node.op_type not in _KINDS or node.input[0] in weights:
        return False
    weight = weights.get(node.input[1])
    if weight is None or weight.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16):
        return False
    if node.op_type in ("MatMul", "Gemm") and len(weight.dims) != 2:
        return False
    # The last product before scores and logits has one channel: it decides, and costs nothing.
    return _NEVER not in weight.name and weight.dims[_axis(node)] > 1


def _axis(node: NodeProto) -> int:
    """The axis of a node's weights that counts output channels."""
    match node.op_type:
        case "Conv":
            return 0
        case "Gemm":
            return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return 1  # MatMul [K, N]; ConvTranspose [in, out, ...]


def _typed(values: _Floats, kind: int) -> npt.NDArray[Any]:
    return values.astype(np.float16 if kind == TensorProto.FLOAT16 else np.float32)
