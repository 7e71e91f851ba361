"""OpenVINO on the CPU, for comparison: the bundle's graphs behind the runtime's own pipeline.

Shapes are static, compiled for each size that occurs: with a dynamic number of categories,
OpenVINO 2026.4 crashed on some of the graphs, and static ones are what it is fastest with. The
number of threads is OpenVINO's own choice.
"""

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import numpy as np
import openvino

from escnet_runtime.backends import GraphFile
from escnet_runtime.backends.base import Array, Tensor
from escnet_runtime.errors import BackendError
from escnet_runtime.manifest import Precision

__all__ = ["OpenVinoBackend"]

_DEVICE: Final = "CPU"
#: Left to itself, OpenVINO computes in bf16 where the processor can.
_HINTS: Final = {Precision.FP32: "f32", Precision.FP16: "f16", Precision.BF16: "bf16"}
_Shapes: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]


class OpenVinoBackend:
    """Compiled graphs, one for each shape of inputs that is met.

    Args:
        graphs: the graphs by name.
    """

    name = "openvino"

    def __init__(self, graphs: Mapping[str, GraphFile]) -> None:
        self._graphs = dict(graphs)
        self._core = openvino.Core()
        self._requests: dict[tuple[str, _Shapes], Any] = {}
        #: Of the graph compiled last; 0 before any was.
        self.threads = 0

    @property
    def description(self) -> str:
        """Library, version and device."""
        return f"OpenVINO {openvino.__version__} on CPU"

    def run(self, graph: str, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        """See :class:`escnet_runtime.backends.base.Backend`. Tensors are NumPy arrays."""
        feeds = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        key = graph, tuple((name, value.shape) for name, value in feeds.items())
        try:
            if key not in self._requests:
                self._requests[key] = self._compiled(graph, feeds).create_infer_request()
            results = self._requests[key].infer(feeds, share_inputs=True)
        except BackendError:
            raise
        except Exception as error:  # OpenVINO's errors share no base below Exception
            raise BackendError(f"graph {graph!r} failed in OpenVINO: {error}") from error
        return {port.get_any_name(): value for port, value in results.items()}

    def to_host(self, tensor: Tensor) -> Array:
        """See :class:`escnet_runtime.backends.base.Backend`."""
        array: Array = tensor
        return array

    def release(self, graph: str) -> None:
        """See :class:`escnet_runtime.backends.base.Backend`."""
        for key in [key for key in self._requests if key[0] == graph]:
            del self._requests[key]

    def close(self) -> None:
        """See :class:`escnet_runtime.backends.base.Backend`."""
        self._requests.clear()

    def _compiled(self, graph: str, feeds: Mapping[str, Array]) -> Any:
        file = self._graphs[graph]
        hint = _HINTS.get(file.precision)
        if hint is None:
            raise BackendError(
                f"graph {graph!r} is typed {file.precision}: OpenVINO is compared at "
                f"{', '.join(_HINTS)} alone"
            )
        model = self._core.read_model(file.path)
        model.reshape({name: list(value.shape) for name, value in feeds.items()})
        options = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        compiled = self._core.compile_model(model, _DEVICE, options)
        got = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if got != hint:
            raise BackendError(
                f"OpenVINO computes graph {graph!r} in {got} on this processor, its file says "
                f"{hint}"
            )
        self.threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        return compiled
