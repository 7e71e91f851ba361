"""Two forms of a graph, run by Polygraphy on the same inputs and compared tensor by tensor."""

import contextlib
import io
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from polygraphy.backend.onnx import BytesFromOnnx, ModifyOutputs
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from polygraphy.comparator import Comparator
from polygraphy.logger import G_LOGGER

from .backends.base import Array
from .backends.widen import round_nodes, take_inputs, widen
from .sketch import relative_l2

__all__ = [
    "Feeds",
    "Layer",
    "all_values",
    "compare_models",
    "quiet_libraries",
    "reference_graph",
]

#: Bytes of tensors that one run may give out.
_MOST_OUTPUT_BYTES: Final = 2**29
_GUESS_BYTES: Final = 2**20  # of a tensor whose shape ONNX does not infer
_WARNINGS, _ERRORS_ALONE = 2, 3  # severities of ONNX Runtime's log; the first is its default

#: Arrays by the name of a tensor.
Feeds: TypeAlias = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One tensor inside a graph.

    Attributes:
        node: the node that makes it.
        op: the node's operator.
        tensor: its name.
        relative_l2: its distance from the reference; infinite where it is not finite.
        largest: the largest absolute value that it has in the reference.
    """

    node: str
    op: str
    tensor: str
    relative_l2: float
    largest: float


def compare_models(
    reference: onnx.ModelProto,
    typed: onnx.ModelProto,
    feeds: Feeds,
    *,
    provider: str = "cpu",
) -> list[Layer]:
    """Every floating-point tensor that both graphs have, in the order ``typed`` computes them.

    Args:
        reference: is run on the CPU.
        typed: is run by ``provider``; on the CPU in float32, rounded behind every node.
        feeds: by name; both take the same. bfloat16 is fed as float32.
        provider: "cpu" or "cuda".
    """
    known = {name for node in reference.graph.node for name in node.output}
    makers = {
        name: node
        for node in typed.graph.node
        for name in node.output
        if name in known and name and node.op_type != "Constant"
    }
    errors = _Errors(makers)
    reference = _fed(reference, feeds)
    # ONNX Runtime drops roundings between nodes on the CPU, and with them what overflows there.
    typed = _fed(round_nodes(typed) if provider == "cpu" else typed, feeds)
    for names in _batches(reference, list(makers), feeds):
        with quiet_libraries():
            results = Comparator.run(
                [_runner(reference, names, "cpu"), _runner(typed, names, provider)],
                data_loader=[feeds],
            )
            Comparator.compare_accuracy(results, compare_func=errors)
    return errors.layers


class _Errors:
    """A comparison for Polygraphy that keeps its figures.

    Args:
        makers: the node of each tensor, in the order they are computed.
    """

    def __init__(self, makers: Mapping[str, onnx.NodeProto]) -> None:
        self._makers = makers
        self.layers: list[Layer] = []

    def __call__(
        self, want: Mapping[str, Array], got: Mapping[str, Array]
    ) -> "OrderedDict[str, bool]":
        for name, node in self._makers.items():
            if name in want and np.asarray(want[name]).dtype.kind == "f":
                self.layers.append(_layer(node, name, want[name], got[name]))
        return OrderedDict((name, True) for name in want)


def _layer(node: onnx.NodeProto, name: str, want: Array, got: Array) -> Layer:
    exact, here = np.asarray(want, np.float64), np.asarray(got, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        error = relative_l2(here, exact)
    return Layer(
        node=node.name or name,
        op=node.op_type,
        tensor=name,
        relative_l2=error,
        largest=float(np.abs(exact).max(initial=0.0)),
    )


def _runner(model: onnx.ModelProto, outputs: Sequence[str], provider: str) -> Any:
    marked = ModifyOutputs(model, outputs=list(outputs), copy=True)
    session = SessionFromOnnx(
        BytesFromOnnx(marked),
        providers=[provider],
        graph_optimization_level=onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    )
    return OnnxrtRunner(session)


def _batches(model: onnx.ModelProto, names: list[str], feeds: Feeds) -> Iterator[list[str]]:
    """Tensors to mark at a time, so that what is given out stays within bounds."""
    sizes = _sizes(model, feeds)
    batch: list[str] = []
    total = 0
    for name in names:
        size = sizes.get(name, _GUESS_BYTES)
        if batch and total + size > _MOST_OUTPUT_BYTES:
            yield batch
            batch, total = [], 0
        batch.append(name)
        total += size
    if batch:
        yield batch


def _sizes(model: onnx.ModelProto, feeds: Feeds) -> dict[str, int]:
    """Bytes of the tensors whose shape ONNX infers from those of the inputs, as float32."""
    shaped = onnx.ModelProto()
    shaped.CopyFrom(model)
    del shaped.graph.value_info[:]
    for value in shaped.graph.input:
        if value.name in feeds:
            for axis, size in zip(
                value.type.tensor_type.shape.dim, feeds[value.name].shape, strict=True
            ):
                axis.dim_value = size
    try:
        inferred = onnx.shape_inference.infer_shapes(shaped)
    except Exception:  # ONNX raises its own types; sizes are then guessed
        return {}
    return {
        value.name: 4 * math.prod(axis.dim_value or 1 for axis in value.type.tensor_type.shape.dim)
        for value in inferred.graph.value_info
    }


def reference_graph(
    typed: onnx.ModelProto, other: onnx.ModelProto | None = None
) -> onnx.ModelProto:
    """What a graph is compared with, in float32: itself or another one."""
    model = onnx.ModelProto()
    model.CopyFrom(typed if other is None else other)
    widen(model.graph)
    return model


def _fed(model: onnx.ModelProto, feeds: Feeds) -> onnx.ModelProto:
    """A copy of a model that takes ``feeds`` of the types they have."""
    fed = onnx.ModelProto()
    fed.CopyFrom(model)
    kinds = {
        name: onnx.helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feeds.items()
    }
    take_inputs(fed, kinds)
    return fed


def all_values(typed: onnx.ModelProto, feeds: Feeds) -> Feeds:
    """Every tensor inside a graph in float32, by name."""
    model = _fed(reference_graph(typed), feeds)
    names = [name for node in typed.graph.node for name in node.output if name]
    values: Feeds = {}
    for batch in _batches(model, names, feeds):
        with quiet_libraries(), _runner(model, batch, "cpu") as runner:
            values.update({key: np.array(value) for key, value in runner.infer(feeds).items()})
    return values


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Polygraphy logs to standard output, which is not its own here; ONNX Runtime warns."""
    onnxruntime.set_default_logger_severity(_ERRORS_ALONE)
    try:
        with (
            G_LOGGER.verbosity(G_LOGGER.CRITICAL),
            contextlib.redirect_stdout(io.StringIO()),
            np.errstate(all="ignore"),  # Polygraphy's statistics of what is not finite
        ):
            yield
    finally:
        onnxruntime.set_default_logger_severity(_WARNINGS)
