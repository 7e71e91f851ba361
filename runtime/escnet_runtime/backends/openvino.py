"""OpenVINO on the CPU: bf16 as the graphs type it where the processor has it, else float32.

Told a precision, OpenVINO lowers a whole graph to it, also what the graph types float32: scores,
sums, norms. Told "dynamic", it computes each node as it is typed. That is for bf16 graphs on a
processor with bf16 products (AMX, AVX512_BF16, SVE); everything else is told f32, and narrower
weights are widened. f16 as typed is slower than float32, on processors with AVX512_FP16 too
(measured, 2026.4: 1.5 times as long for the image encoder of ``vit-b-16``).

Shapes are static, compiled for each size of chunk that occurs: with a dynamic number of categories
OpenVINO 2026.4 fails on the decoder ("Reorder node") and is slower on the others.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import numpy as np
import openvino

from ..errors import BackendError
from ..manifest import Precision
from .base import Array, GraphFile, Tensor

__all__ = ["OpenVinoBackend"]

_DEVICE: Final = "CPU"
#: Left to itself, it computes everything in bf16 where the processor can.
_FLOAT32, _AS_TYPED = "f32", "dynamic"
_PRECISIONS: Final = (Precision.FP32, Precision.FP16, Precision.BF16)
#: Compiled forms of a graph that are kept: a full chunk, a last one, and those of another list.
_KEPT: Final = 4
_Shapes: TypeAlias = tuple[tuple[int, ...], ...]


class OpenVinoBackend:
    """Compiled graphs, one for each shape of inputs that is met.

    A chunk may change the last bits: OpenVINO chooses kernels by shape.

    Args:
        graphs: the graphs by name.

    Raises:
        BackendError: a graph is of a precision that it is not run at here.
    """

    name = "openvino"

    def __init__(self, graphs: Mapping[str, GraphFile]) -> None:
        for name, file in graphs.items():
            if file.precision not in _PRECISIONS:
                raise BackendError(
                    f"graph {name!r} is typed {file.precision}; OpenVINO runs graphs of "
                    f"{', '.join(_PRECISIONS)} here: choose backend 'onnxruntime', or export at "
                    "one of these"
                )
        self._graphs = dict(graphs)
        self._core = openvino.Core()
        has_bf16 = "BF16" in self._core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
        self._as_typed = frozenset(
            name for name, file in graphs.items() if has_bf16 and file.precision is Precision.BF16
        )
        self._requests: dict[str, OrderedDict[_Shapes, Any]] = {}
        self._closed = False
        #: Of the graph compiled last; 0 before any was.
        self.threads = 0

    @property
    def description(self) -> str:
        """Library, version, device and what it computes in."""
        types = "bfloat16 and float32 as typed" if self._as_typed else "float32"
        return f"OpenVINO {openvino.__version__} on CPU, in {types}"

    def run(self, graph: str, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        """See :class:`Backend`. Tensors are NumPy arrays."""
        if self._closed:
            raise BackendError("the backend is closed; make a new Segmenter")
        feeds = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        try:
            results = self._request(graph, feeds).infer(feeds, share_inputs=True)
        except BackendError:
            raise
        except Exception as error:  # OpenVINO's errors share no base below Exception
            raise BackendError(f"graph {graph!r} failed in OpenVINO: {error}") from error
        return {port.get_any_name(): value for port, value in results.items()}

    def to_host(self, tensor: Tensor) -> Array:
        """See :class:`Backend`."""
        array: Array = tensor
        return array

    def release(self, graph: str) -> None:
        """See :class:`Backend`."""
        self._requests.pop(graph, None)

    def close(self) -> None:
        """See :class:`Backend`."""
        self._requests.clear()
        self._closed = True

    def _request(self, graph: str, feeds: Mapping[str, Array]) -> Any:
        if graph not in self._graphs:
            raise BackendError(f"there is no graph {graph!r}; there are {', '.join(self._graphs)}")
        kept = self._requests.setdefault(graph, OrderedDict())
        shapes = tuple(value.shape for value in feeds.values())
        if shapes not in kept:
            kept[shapes] = self._compiled(graph, feeds).create_infer_request()
            if len(kept) > _KEPT:
                kept.popitem(last=False)
        kept.move_to_end(shapes)
        return kept[shapes]

    def _compiled(self, graph: str, feeds: Mapping[str, Array]) -> Any:
        model = self._core.read_model(self._graphs[graph].path)
        model.reshape({name: list(value.shape) for name, value in feeds.items()})
        hint = _AS_TYPED if graph in self._as_typed else _FLOAT32
        options = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        compiled = self._core.compile_model(model, _DEVICE, options)
        got = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if got != hint:
            raise BackendError(
                f"OpenVINO computes graph {graph!r} in {got} though it was told {hint}: choose "
                "backend 'onnxruntime'"
            )
        self.threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        return compiled
