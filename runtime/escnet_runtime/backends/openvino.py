"""OpenVINO on the CPU: bf16 as the graphs type it where the processor has it, else float32.

Told a precision, OpenVINO lowers a whole graph to it, also what the graph types float32: scores,
sums, norms. Told "dynamic", it computes each node as it is typed. That is for bf16 graphs on a
processor with bf16 products (AMX, say); everything else is told f32, and narrower weights are
widened. f16 as typed is slower than float32, on processors with AVX512_FP16 too (measured, 2026.4:
1.5 times as long for the image encoder of ``vit-b-16``).

Shapes are static, compiled for each size of chunk that occurs: with a dynamic number of categories
OpenVINO 2026.4 fails on the decoder ("Reorder node") and is slower on the others.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import BackendError, BundleIntegrityError
from ..forks import not_freed_in_children
from ..lanes import best_lanes, thread_limit, usable_cores
from ..manifest import Precision
from ..order import by_chunk
from .arrays import ArrayPool
from .base import Array, GraphFile, Tensor
from .graph_cache import GraphCache
from .unreported import unreported

with unreported():
    import openvino
    from openvino.frontend import FrontEndManager

__all__ = ["VERSION", "OpenVinoBackend", "computes_bf16"]

VERSION: Final = str(openvino.__version__)

# The bindings look NumPy up when they first meet an array, and two threads that both do so for the
# first time wait for each other for ever (2026.4: a static's guard against the GIL). Whoever
# imports this is alone.
openvino.Tensor(np.zeros(1, np.float32), shared_memory=True).data.copy()

_LOG: Final = logging.getLogger("escnet_runtime")
_DEVICE: Final = "CPU"
_BITS: Final = np.uint16
#: Left to itself, it computes everything in bf16 where the processor can.
_FLOAT32, _AS_TYPED = "f32", "dynamic"
_PRECISIONS: Final = (Precision.FP32, Precision.FP16, Precision.BF16)
#: Compiled forms of a graph that are kept: a full chunk, a last one, and those of another list.
_KEPT: Final = 4
_Shapes: TypeAlias = tuple[tuple[int, ...], ...]


def _given(value: Array, *, bf16: bool) -> Array:
    """What OpenVINO takes: for a port of bf16 its bits, rounded to even, which it calls float16."""
    array = np.ascontiguousarray(value)
    if not bf16:
        return array
    if array.dtype != _BITS:
        wide = array.astype(np.float32).view(np.uint32)
        rounded = ((wide + 0x7FFF + (wide >> 16 & 1)) >> 16).astype(_BITS)
        array = np.where(np.isnan(array), _BITS(0x7FC0), rounded)
    return array.view(np.float16)


def _kind_of(port: Any) -> npt.DTypeLike:
    """NumPy's type of what a port gives; bits, where it has none."""
    return _BITS if port.element_type == openvino.Type.bf16 else port.element_type.to_dtype()


def _tensor(array: Array, port: Any) -> openvino.Tensor:
    """The array's own memory, as the port has it."""
    if port.element_type == openvino.Type.bf16:
        return openvino.Tensor(array, openvino.Shape(list(array.shape)), openvino.Type.bf16)
    return openvino.Tensor(array, shared_memory=True)


def computes_bf16(core: openvino.Core | None = None) -> bool:
    """Whether the processor has products of bf16, so that OpenVINO computes it as typed."""
    core = core or openvino.Core()
    return "BF16" in core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")


@dataclass(slots=True)
class _Compiled:
    """A graph compiled for one shape of inputs, and requests of it that nobody uses just now."""

    model: Any
    free: list[Any] = field(default_factory=list)

    @contextmanager
    def request(self) -> Iterator[Any]:
        """One that is nobody else's meanwhile; as many are made as are used at once."""
        # Taking from a list and adding to it are atomic.
        try:
            request = self.free.pop()
        except IndexError:
            request = self.model.create_infer_request()
            not_freed_in_children(request)
        try:
            yield request
        finally:
            self.free.append(request)


class OpenVinoBackend:
    """Compiled graphs, one for each shape of inputs that is met.

    A chunk may change the last bits: OpenVINO chooses kernels by shape.

    Args:
        graphs: the graphs by name.
        cache: the folder where compiled graphs are kept for this processor; None keeps none.

    Raises:
        BackendError: a graph is of a precision that it is not run at here.
    """

    name = "openvino"

    def __init__(self, graphs: Mapping[str, GraphFile], *, cache: Path | None = None) -> None:
        for name, file in graphs.items():
            if file.precision not in _PRECISIONS:
                raise BackendError(
                    f"graph {name!r} is typed {file.precision}; OpenVINO runs graphs of "
                    f"{', '.join(_PRECISIONS)} here: choose backend 'onnxruntime', or export at "
                    "one of these"
                )
        self._graphs = dict(graphs)
        self._core = openvino.Core()
        self._cache = None
        if cache is not None:
            self._cache = GraphCache(cache, "OpenVINO", VERSION, str(usable_cores()))
        self._as_typed = frozenset(
            name
            for name, file in graphs.items()
            if file.precision is Precision.BF16 and computes_bf16(self._core)
        )
        self._compiled: dict[tuple[str, int], OrderedDict[_Shapes, _Compiled]] = {}
        #: Ports by graph. What comes out of them is bits of bf16, which NumPy has not, as uint16.
        self._bf16 = {
            name: frozenset(
                port.name
                for port in (*file.stage.inputs, *file.stage.outputs)
                if port.dtype == "bfloat16"
            )
            for name, file in graphs.items()
            if file.stage is not None
        }
        self._compiling = threading.Lock()
        self._arrays = ArrayPool()
        self._lanes = 1
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
        bf16 = self._bf16.get(graph, frozenset())
        feeds = {name: _given(value, bf16=name in bf16) for name, value in inputs.items()}
        try:
            form = self._form(graph, feeds)
            arrays = {
                port.get_any_name(): self._arrays.empty(tuple(port.shape), _kind_of(port))
                for port in form.model.outputs
            }
            with form.request() as request:
                for index, array in enumerate(arrays.values()):
                    request.set_output_tensor(index, _tensor(array, form.model.output(index)))
                request.infer(feeds, share_inputs=True, share_outputs=True)
        except (BackendError, BundleIntegrityError):
            raise
        except Exception as error:  # OpenVINO's errors share no base below Exception
            raise BackendError(f"graph {graph!r} failed in OpenVINO: {error}") from error
        return arrays

    def to_host(self, tensor: Tensor) -> Array:
        """See :class:`Backend`."""
        array: Array = tensor
        if array.dtype == _BITS:
            array = (array.astype(np.uint32) << 16).view(np.float32)
        return array

    def lanes(self, rows: Sequence[int]) -> int:
        """See :class:`escnet_runtime.lanes.RunsSideBySide`."""
        self._lanes = best_lanes(rows, usable_cores())
        return self._lanes

    def release(self, graph: str) -> None:
        """See :class:`Backend`."""
        for key in [key for key in self._compiled if key[0] == graph]:
            del self._compiled[key]

    def close(self) -> None:
        """See :class:`Backend`."""
        self._compiled.clear()
        self._arrays.clear()
        self._closed = True

    def _form(self, graph: str, feeds: Mapping[str, Array]) -> _Compiled:
        """The graph for these shapes, and for so many runs of it at once."""
        if graph not in self._graphs:
            raise BackendError(f"there is no graph {graph!r}; there are {', '.join(self._graphs)}")
        lanes = self._lanes if by_chunk(graph) else 1
        shapes = tuple(value.shape for value in feeds.values())
        with self._compiling:  # one lane compiles, the others wait
            kept = self._compiled.setdefault((graph, lanes), OrderedDict())
            if shapes not in kept:
                kept[shapes] = _Compiled(self._compile(graph, feeds, lanes))
                not_freed_in_children(kept[shapes].model)
                if len(kept) > _KEPT:
                    kept.popitem(last=False)
            kept.move_to_end(shapes)
            return kept[shapes]

    def _compile(self, graph: str, feeds: Mapping[str, Array], lanes: int) -> Any:
        hint = _AS_TYPED if graph in self._as_typed else _FLOAT32
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        if lanes > 1:
            threads = usable_cores() // lanes * lanes
            options |= {"NUM_STREAMS": lanes, "INFERENCE_NUM_THREADS": threads}
        elif limit := thread_limit():
            options["INFERENCE_NUM_THREADS"] = limit
        shapes = {name: list(value.shape) for name, value in feeds.items()}
        compiled = self._kept(graph, shapes, options) or self._made(graph, shapes, options)
        got = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if got != hint:
            raise BackendError(
                f"OpenVINO computes graph {graph!r} in {got} though it was told {hint}: choose "
                "backend 'onnxruntime'"
            )
        self.threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        return compiled

    def _kept(
        self, graph: str, shapes: Mapping[str, list[int]], options: Mapping[str, Any]
    ) -> Any | None:
        """The graph as it was compiled before, if it was."""
        stage = self._graphs[graph].stage
        if self._cache is None or stage is None:
            return None
        return self._cache.opened(
            _key(stage.sha256, shapes, options),
            lambda blob: self._core.import_model(blob, _DEVICE, dict(options)),
        )

    def _made(self, graph: str, shapes: Mapping[str, list[int]], options: Mapping[str, Any]) -> Any:
        """The graph compiled, and kept so."""
        file = self._graphs[graph]
        with file.reading() as path:  # weights are read while it compiles
            model = _read(path)
            model.reshape(dict(shapes))
            compiled = self._core.compile_model(model, _DEVICE, dict(options))
        if self._cache is not None and file.stage is not None:
            key = _key(file.stage.sha256, shapes, options)
            try:
                with self._cache.keeping(key, file.path) as target:
                    if target is not None:
                        target.write_bytes(compiled.export_model().getvalue())
            except Exception as error:  # a full disk, or OpenVINO's own
                _LOG.debug("a compiled graph is not kept: %s", error)
        return compiled


def _read(path: Path) -> Any:
    """The graph of a file, read as ONNX and as nothing else.

    The library's own reading looks into a file to tell what it is. A format of its own has the
    weights in a second file, which no hash of the bundle's is of.
    """
    reader = FrontEndManager().load_by_framework("onnx")
    return reader.convert(reader.load(str(path)))


def _key(graph: str, shapes: Mapping[str, list[int]], options: Mapping[str, Any]) -> str:
    return repr((graph, sorted(shapes.items()), sorted(options.items())))
