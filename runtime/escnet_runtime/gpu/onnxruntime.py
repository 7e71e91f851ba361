"""ONNX Runtime's CUDA provider, on our buffers and our stream.

Inputs and outputs are bound to addresses once, and a run is given to the stream without waiting for
it. What lives inside a graph is in ONNX Runtime's own arena. Its CUDA sessions cannot be recorded
into a CUDA graph of ours (error 900, and the process ends), so this backend is never captured.

A run that nobody waits for leaves its page-locked buffers to the session, which frees them in the
next run that is waited for (ONNX Runtime's DeviceStreamCollection::CleanUp) or when it is freed
itself, and then in a callback of the stream that may not free them: cudaFreeHost fails there with
error 800 and the process ends. Both were seen on an H200 with ONNX Runtime 1.31: 10,000 images left
2.6 GB, and closing ended the process. So the pipeline has every graph waited for now and then, and
before it is freed: see ``tidying``. A graph for which that failed is never freed.

With ``ESCNET_ORT_CUDA_GRAPHS=1`` ONNX Runtime records each graph of ours itself and launches it as
one (its provider option ``enable_cuda_graph``), for each thread anew. That has not run on a GPU,
and is off: it is there to be measured (``gpu-check --ort-graphs``), as launching thousands of small
kernels is what the first run on an H200 seems to have spent its time with.
"""

import contextlib
import ctypes
import importlib.util
import itertools
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnxruntime as ort

from ..backends.base import GraphFile
from ..backends.onnxruntime import SLOW_ON_A_CPU
from ..backends.ports import require_ports
from ..device.base import Device, Stream
from ..errors import BackendError, BundleIntegrityError, DeviceError, OutOfDeviceMemory
from ..forks import never_freed, not_freed_in_children
from ..manifest import DType
from .backend import Binding

__all__ = ["OrtGraphs"]

_LOG = logging.getLogger("escnet_runtime")

Provider = Literal["cuda", "cpu"]

_PROVIDERS: Final[dict[Provider, str]] = {
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
#: What the CUDA provider needs, each behind what it needs itself.
_LIBRARIES: Final = (
    "libcudart",
    "libnvJitLink",
    "libcublasLt",
    "libcublas",
    "libcurand",
    "libcufft",
    "libcudnn",
)
_BFLOAT16: Final = 16  # onnx.TensorProto.BFLOAT16: NumPy has no such type
_ELEMENT_TYPES: Final[dict[DType, object]] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": _BFLOAT16,
    "int32": np.int32,
    "int8": np.int8,
    "uint8": np.uint8,
}
_QUIET: Final = 3  # errors only: ONNX Runtime's warnings are for its developers
_FATAL: Final = 4
_OWN_GRAPHS: Final = "ESCNET_ORT_CUDA_GRAPHS"
#: Calls of a bound graph before ONNX Runtime records it: what runs once or twice is not worth it.
_BEFORE_OWN_GRAPHS: Final = 2
_NOT_RECORDED: Final = -1  # of gpu_graph_id
_NO_MEMORY: Final = re.compile(
    # cuBLAS and cuDNN before 9 say ALLOC_FAILED; the last but one is cuDNN's of 9.
    r"out of memory|failed to allocate|smaller than requested|ALLOC_FAILED|"
    r"DEVICE_ALLOCATION_FAILED|bad allocation",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class _RunOptions:
    """Run options: one set for runs that synchronise, one for runs that are only enqueued."""

    waiting: ort.RunOptions
    passing: ort.RunOptions

    @classmethod
    def made(cls, number: int | None) -> "_RunOptions":
        """``number`` is that of ONNX Runtime's own CUDA graph; None where it has none."""
        found = cls(ort.RunOptions(), ort.RunOptions())
        # The host would wait at the end of every graph.
        found.passing.add_run_config_entry("disable_synchronize_execution_providers", "1")
        for options in (found.waiting, found.passing):
            options.log_severity_level = _FATAL  # errors are raised, and said once
            if number is not None:
                options.add_run_config_entry("gpu_graph_id", str(number))
        return found


class OrtGraphs:
    """Sessions of a bundle's graphs; see :class:`escnet_runtime.gpu.backend.DeviceBackend`.

    Args:
        graphs: the graphs by name.
        device: where they run.
        stream: what they work on, of that device.
        provider: "cuda"; "cpu" takes addresses of the host, for tests of the pipeline, and has
            computed when a call returns.
        own_graphs: whether ONNX Runtime records what is bound into CUDA graphs of its own; by
            default where ``ESCNET_ORT_CUDA_GRAPHS`` is 1.

    Raises:
        BackendError: the provider is not in the installed ONNX Runtime.
    """

    capturable = False
    most_rows = None

    def __init__(
        self,
        graphs: Mapping[str, GraphFile],
        device: Device,
        stream: Stream,
        *,
        provider: Provider = "cuda",
        own_graphs: bool | None = None,
    ) -> None:
        require_provider(provider)
        self._own_graphs = os.environ.get(_OWN_GRAPHS) == "1" if own_graphs is None else own_graphs
        self._numbers = itertools.count(1)
        self._graphs, self._stream, self._provider = dict(graphs), stream, provider
        self._device = device
        _, self._number = device.dlpack
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._closed = False
        self._waits = False
        self._untidy: set[str] = set()
        self._plain = _RunOptions.made(_NOT_RECORDED if self._own_graphs else None)

    @property
    def name(self) -> str:
        """See :class:`DeviceBackend`."""
        return "onnxruntime-cuda" if self._provider == "cuda" else "onnxruntime"

    @property
    def description(self) -> str:
        """See :class:`DeviceBackend`."""
        return f"ONNX Runtime {ort.__version__} on {self._provider.upper()}"

    @property
    def resident_bytes(self) -> int:
        """The weights: what lives inside graphs is in ONNX Runtime's arena and not known."""
        return sum(self._graphs[name].path.stat().st_size for name in self._sessions)

    @property
    def untidy(self) -> bool:
        """See :class:`DeviceBackend`."""
        return bool(self._untidy)

    @contextlib.contextmanager
    def tidying(self) -> Iterator[None]:
        """See :class:`DeviceBackend`."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def stream(self) -> Stream:
        """See :class:`DeviceBackend`."""
        return self._stream

    def scratch_bytes(self) -> int:
        """0: ONNX Runtime allocates its own scratch."""
        return 0

    def load(self, *graphs: str) -> None:
        """See :class:`DeviceBackend`."""
        for graph in graphs:
            self._session(graph)

    def bind(
        self,
        graph: str,
        inputs: Mapping[str, Binding],
        outputs: Mapping[str, Binding],
        *,
        scratch: int = 0,
    ) -> Callable[[], None]:
        """See :class:`DeviceBackend`."""
        session = self._session(graph)
        with self._device.current():
            io = session.io_binding()
            try:
                for bindings, bind in ((inputs, io.bind_input), (outputs, io.bind_output)):
                    for name, one in bindings.items():
                        kind = _ELEMENT_TYPES[one.dtype]
                        bind(name, self._provider, self._number, kind, one.shape, one.address)
            except Exception as error:  # ONNX Runtime's errors share no base below Exception
                raise BackendError(f"graph {graph!r} cannot be bound: {error}") from error

        calls, recorded = itertools.count(), None
        if self._own_graphs:
            recorded = _RunOptions.made(next(self._numbers))

        def run() -> None:
            waits = self._waits
            if not waits:
                self._untidy.add(graph)
            options = self._plain
            if recorded is not None and next(calls) >= _BEFORE_OWN_GRAPHS:
                options = recorded
            try:
                with self._device.current():
                    session.run_with_iobinding(io, options.waiting if waits else options.passing)
            except Exception as error:
                raise _failure(f"graph {graph!r} failed in ONNX Runtime", error) from error
            if waits:
                self._untidy.discard(graph)

        return run

    def release(self, graph: str) -> None:
        """See :class:`DeviceBackend`."""
        if graph in self._untidy:
            _LOG.debug("graph %r stays: ONNX Runtime keeps something of its runs", graph)
            return
        with self._device.current():
            self._sessions.pop(graph, None)

    def unload(self) -> None:
        """See :class:`DeviceBackend`."""
        for graph in list(self._sessions):
            self.release(graph)

    def close(self) -> None:
        """See :class:`DeviceBackend`."""
        with contextlib.suppress(DeviceError):  # it was closed too early: all stays
            self.unload()
        for graph, session in self._sessions.items():
            # The memory stays until the process ends, which freeing it would do now.
            _LOG.warning("graph %r could not be waited for; its memory is not given back", graph)
            never_freed(session)
        self._sessions.clear()
        self._untidy.clear()
        self._closed = True

    def _session(self, graph: str) -> ort.InferenceSession:
        if self._closed:
            raise BackendError("the backend is closed; make a new Segmenter")
        if graph not in self._sessions:
            self._sessions[graph] = self._load(graph)
        return self._sessions[graph]

    def _load(self, graph: str) -> ort.InferenceSession:
        if graph not in self._graphs:
            raise BackendError(f"there is no graph {graph!r}; there are {', '.join(self._graphs)}")
        file = self._graphs[graph]
        options = ort.SessionOptions()
        options.log_severity_level = _QUIET
        if self._provider == "cuda":
            # Twenty sessions would have a pool of threads each, for nodes that all run elsewhere.
            options.intra_op_num_threads = 1
        try:
            with file.reading() as path, self._device.current():
                session = ort.InferenceSession(
                    str(path),
                    options,
                    providers=[self._provider_with_options()],
                    disabled_optimizers=list(SLOW_ON_A_CPU) if self._provider == "cpu" else [],
                )
        except BundleIntegrityError:
            raise
        except Exception as error:
            what = (
                f"ONNX Runtime {ort.__version__} cannot load graph {graph!r} ({file.precision} "
                f"from {file.path})"
            )
            raise _failure(what, error) from error
        not_freed_in_children(session)
        if self._provider == "cuda" and _PROVIDERS["cuda"] not in session.get_providers():
            raise BackendError(
                f"ONNX Runtime {ort.__version__} has the CUDA provider and cannot start it (it "
                f"took {', '.join(session.get_providers())}): its CUDA or cuDNN libraries are "
                "missing or of another version; install escnet-runtime[onnxruntime-gpu] with "
                "what it needs, or choose backend='onnxruntime'"
            )
        if file.stage is not None:
            require_ports(graph, session, file.stage)
        return session

    def _provider_with_options(self) -> str | tuple[str, dict[str, str]]:
        name = _PROVIDERS[self._provider]
        if self._provider == "cpu":
            return name
        recorded = {"enable_cuda_graph": "1"} if self._own_graphs else {}
        return name, {
            **recorded,
            "device_id": str(self._number),
            "user_compute_stream": str(self._stream.handle),
            # Twenty graphs have an arena each: they grow by what is asked for, not in powers of 2.
            "arena_extend_strategy": "kSameAsRequested",
            # Trying every algorithm for every new shape takes seconds, and memory that stays.
            "cudnn_conv_algo_search": "HEURISTIC",
            # Precision is in the file: float32 there means float32.
            "use_tf32": "0",
        }


def require_provider(provider: Provider) -> None:
    """Refuse a provider that the installed ONNX Runtime does not have."""
    if provider == "cuda":
        _load_libraries()
    available = ort.get_available_providers()
    if _PROVIDERS[provider] not in available:
        raise BackendError(
            f"ONNX Runtime {ort.__version__} here has no {_PROVIDERS[provider]} (it has "
            f"{', '.join(available)}); install escnet-runtime[onnxruntime-gpu] in place of "
            "[onnxruntime], or choose backend='onnxruntime'"
        )


def _load_libraries() -> None:
    """Load CUDA and cuDNN from Python packages, wherever on the path these are.

    ONNX Runtime looks beside itself alone; once a library is loaded, it finds it by its name.
    """
    found = importlib.util.find_spec("nvidia")
    for folder in (found.submodule_search_locations or []) if found else []:
        for name in _LIBRARIES:
            for library in sorted(Path(folder).glob(f"*/lib/{name}.so.*")):
                try:
                    ctypes.CDLL(str(library))
                except OSError as error:
                    _LOG.debug("%s does not load: %s", library.name, error)


def _failure(what: str, error: Exception) -> BackendError | OutOfDeviceMemory:
    kind = OutOfDeviceMemory if _NO_MEMORY.search(str(error)) else BackendError
    return kind(f"{what}: {error}")
