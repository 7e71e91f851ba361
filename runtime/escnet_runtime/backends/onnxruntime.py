"""ONNX Runtime on the CPU; on a GPU it is :mod:`escnet_runtime.gpu.onnxruntime`.

All our sessions of a process share one memory arena: a bundle is some twenty graphs that run one
after the other, and an arena each would hold twenty times the memory. Threads are each session's
own: a pool for all would have to be the process's, and then ONNX Runtime refuses every session that
somebody else makes with a pool of its own.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from ..errors import BackendError, BundleIntegrityError
from ..forks import not_freed_in_children
from ..lanes import best_lanes, thread_limit, usable_cores
from ..manifest import Precision
from ..order import by_chunk
from .arrays import ArrayPool
from .base import Array, GraphFile, Tensor
from .graph_cache import GraphCache
from .ports import require_ports

__all__ = ["SLOW_ON_A_CPU", "VERSION", "OnnxRuntimeBackend"]

VERSION: Final = str(ort.__version__)

_LOG = logging.getLogger("escnet_runtime")
_PROVIDER: Final = "CPUExecutionProvider"
_NUMPY_TYPES: Final = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
#: Fused kernels that take longer on a CPU than their parts (ONNX Runtime 1.32): an addition and a
#: LayerNormalization five times as long, 12 ms in place of 2 for [16, 576, 256]; a bias and a GELU
#: twice as long where there are few channels.
SLOW_ON_A_CPU: Final = ("SkipLayerNormFusion", "BiasGeluFusion")
_QUIET: Final = 3  # errors only: ONNX Runtime's warnings are for its developers
_environment = threading.Lock()
_shared = False


class OnnxRuntimeBackend:
    """Sessions of a bundle's graphs, loaded when first used.

    Args:
        graphs: the graphs by name.
        cache: the folder where graphs are kept as ONNX Runtime has rewritten them for this
            processor; None keeps none.
    """

    name = "onnxruntime"

    def __init__(self, graphs: Mapping[str, GraphFile], *, cache: Path | None = None) -> None:
        _share_environment()
        self._graphs = dict(graphs)
        self._cache = None
        if cache is not None:
            self._cache = GraphCache(cache, "ONNX Runtime", VERSION, *SLOW_ON_A_CPU)
        # By graph and threads: a vocabulary of another size may want other lanes, and with a
        # shortlist the next image may; loading takes longer than what either gains.
        self._sessions: dict[tuple[str, int], ort.InferenceSession] = {}
        self._loading = threading.Lock()
        self._arrays = ArrayPool()
        self._threads = 0  # of a session whose graph runs by chunk; 0 is ONNX Runtime's own choice
        self._closed = False

    @property
    def description(self) -> str:
        """Library, version and device."""
        return f"ONNX Runtime {ort.__version__} on CPU"

    def run(self, graph: str, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        """See :class:`Backend`. Tensors are NumPy arrays."""
        session = self._session(graph)
        feeds = {name: _value(value) for name, value in inputs.items()}
        try:
            return _run_into_arrays(session, feeds, self._arrays)
        except Exception as error:  # ONNX Runtime's errors share no base below Exception
            raise BackendError(f"graph {graph!r} failed in ONNX Runtime: {error}") from error

    def lanes(self, rows: Sequence[int]) -> int:
        """See :class:`escnet_runtime.lanes.RunsSideBySide`."""
        cores = usable_cores()
        lanes = best_lanes(rows, cores)
        self._threads = 0 if lanes == 1 else cores // lanes
        return lanes

    def to_host(self, tensor: Tensor) -> Array:
        """See :class:`Backend`."""
        array: Array = tensor
        return array

    def release(self, graph: str) -> None:
        """See :class:`Backend`."""
        for key in [key for key in self._sessions if key[0] == graph]:
            del self._sessions[key]

    def close(self) -> None:
        """See :class:`Backend`."""
        self._sessions.clear()
        self._arrays.clear()
        self._closed = True

    def _session(self, graph: str) -> ort.InferenceSession:
        if self._closed:
            raise BackendError("the backend is closed; make a new Segmenter")
        key = graph, self._threads if by_chunk(graph) else 0
        with self._loading:  # one lane loads, the others wait
            if key not in self._sessions:
                self._sessions[key] = self._load(*key)
            return self._sessions[key]

    def _load(self, graph: str, threads: int) -> ort.InferenceSession:
        if graph not in self._graphs:
            raise BackendError(f"there is no graph {graph!r}; there are {', '.join(self._graphs)}")
        file = self._graphs[graph]
        try:
            session = self._kept(file, threads) or self._made(file, threads)
        except (BackendError, BundleIntegrityError):
            raise
        except Exception as error:
            raise BackendError(
                f"ONNX Runtime {ort.__version__} cannot load graph {graph!r} "
                f"({file.precision} from {file.path}): {error}"
            ) from error
        not_freed_in_children(session)
        if file.stage is not None:
            require_ports(graph, session, file.stage)
        return session

    def _kept(self, file: GraphFile, threads: int) -> ort.InferenceSession | None:
        """A session of the graph as it was rewritten before, if it was."""
        if self._cache is None or file.stage is None:
            return None
        options = _options(threads)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return self._cache.opened(
            file.stage.sha256,
            lambda model: ort.InferenceSession(model, options, providers=[_PROVIDER]),
        )

    def _made(self, file: GraphFile, threads: int) -> ort.InferenceSession:
        """A session of the graph itself; what ONNX Runtime makes of it is kept."""
        if file.precision is Precision.BF16:
            # Never kept: what it is made of, code of ours, is no part of a key.
            with file.reading() as path:
                model = path.read_bytes()
            return _session(_emulated_bf16(model), threads)
        if self._cache is not None and file.stage is not None:
            try:
                # Within: what was made of another file is not kept under this one's name.
                with (
                    self._cache.keeping(file.stage.sha256, file.path) as target,
                    file.reading() as path,
                ):
                    return _session(str(path), threads, rewritten=target)
            except Exception as error:  # a full disk; or the graph, which then fails again
                _LOG.debug("a graph is loaded without keeping it: %s", error)
        with file.reading() as path:
            return _session(str(path), threads)


def _session(
    source: str | bytes, threads: int, *, rewritten: Path | None = None
) -> ort.InferenceSession:
    options = _options(threads)
    if rewritten is not None:
        options.optimized_model_filepath = str(rewritten)
    return ort.InferenceSession(
        source, options, providers=[_PROVIDER], disabled_optimizers=list(SLOW_ON_A_CPU)
    )


def _value(value: Any) -> ort.OrtValue:
    if isinstance(value, np.ndarray):
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value))
    return value


def _run_into_arrays(
    session: ort.InferenceSession, feeds: Mapping[str, ort.OrtValue], pool: ArrayPool
) -> dict[str, Tensor]:
    """Run with outputs in arrays of our own.

    The arena that the sessions share is then left to what lives inside a graph. With outputs in it,
    which live on between graphs and lie among what does not, it breaks up: at 847 categories of
    vit-b-16 it took 640 MB for 250 MB of outputs.
    """
    axes = {
        axis: size
        for port in session.get_inputs()
        for axis, size in zip(port.shape, feeds[port.name].shape(), strict=True)
    }
    arrays = {}
    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_ortvalue_input(name, value)
    for port in session.get_outputs():
        shape = tuple(axes.get(axis, axis) for axis in port.shape)
        arrays[port.name] = pool.empty(shape, _NUMPY_TYPES[port.type])
        binding.bind_ortvalue_output(port.name, ort.OrtValue.ortvalue_from_numpy(arrays[port.name]))
    session.run_with_iobinding(binding)
    return arrays


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or thread_limit()
    options.log_severity_level = _QUIET
    # Threads of one graph must not spin while the next one computes.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if _shared:
        options.add_session_config_entry("session.use_env_allocators", "1")
    return options


def _share_environment() -> None:
    """Register the arena that our sessions share, once a process.

    If ONNX Runtime refuses, because somebody else has registered one, sessions get arenas of their
    own, and a log line says so. Sessions of others do not use it.
    """
    # ONNX Runtime's environment is global to the process, and so is the knowledge of it.
    global _shared  # noqa: PLW0603
    with _environment:
        if _shared:
            return
        try:
            memory = ort.OrtMemoryInfo(
                "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
            )
            # Extend by what is asked for, not by the next power of two.
            ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"arena_extend_strategy": 1}))
        except Exception as error:
            _LOG.info("ONNX Runtime's sessions do not share memory: %s", error)
        else:
            _shared = True


def _emulated_bf16(model: bytes) -> bytes:
    try:
        from .bf16 import emulate_bf16  # the optional onnx package
    except ModuleNotFoundError as error:
        raise BackendError(
            "ONNX Runtime has no bf16 kernels on the CPU; emulating them needs the onnx package: "
            "install escnet-runtime[bf16], or export at fp16 or fp32"
        ) from error
    return emulate_bf16(model)
