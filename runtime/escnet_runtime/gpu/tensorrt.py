"""Engines of TensorRT 10, TensorRT 11 and TensorRT-RTX, whose calls are the same here.

All engines of a bundle share one scratch, which the caller owns: they run one after the other. A
context is made for each graph and each set of shapes and never changes its shapes again, because a
context that is part of a CUDA graph must not.
"""

import logging
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, Final

from ..device.base import Device, Stream
from ..engine_record import EngineRecord, Profile
from ..errors import BackendError, DeviceError, OutOfDeviceMemory
from ..forks import never_freed, not_freed_in_children
from ..manifest import Stage
from ..unchanged import file_state, require_unchanged
from .backend import Binding
from .runtime_cache import RuntimeCache

__all__ = ["EngineGraphs"]

_LOG: Final = logging.getLogger("escnet_runtime")
_NO_MEMORY: Final = re.compile(r"out ?of ?memory|cudaErrorMemoryAllocation", re.IGNORECASE)

_MOST_REASONS: Final = 2  # of a failure that are told

_Shapes = tuple[tuple[str, tuple[int, ...]], ...]


class EngineGraphs:
    """Runs a bundle's engines; see :class:`escnet_runtime.gpu.backend.DeviceBackend`.

    Args:
        trt: the library's bindings.
        record: describes the engines, and has been compared with what is here.
        files: the engine of each graph.
        stages: the graphs, for their dynamic axes.
        device: where they run.
        stream: what they work on, of that device.
        cache: the folder where what TensorRT-RTX compiles on the device is kept when this is
            closed; None keeps nothing.
    """

    capturable = True
    untidy = False

    def __init__(
        self,
        trt: Any,
        record: EngineRecord,
        files: Mapping[str, Path],
        stages: Mapping[str, Stage],
        device: Device,
        stream: Stream,
        *,
        cache: Path | None = None,
    ) -> None:
        self._trt, self._record, self._files, self._stages = trt, record, dict(files), stages
        self._states = {name: file_state(path) for name, path in files.items()}
        self._device, self._stream = device, stream
        self._said = _Said(trt)
        self._runtime = self._started()
        self._engines: dict[str, Any] = {}
        self._contexts: dict[tuple[str, _Shapes], Any] = {}
        self._compiled = None if cache is None else RuntimeCache(cache, record, device.name)
        self._closed = False

    @property
    def name(self) -> str:
        """See :class:`DeviceBackend`."""
        return self._record.fingerprint.backend

    @property
    def description(self) -> str:
        """See :class:`DeviceBackend`."""
        names = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
        return f"{names[self.name]} {self._trt.__version__}"

    @property
    def most_rows(self) -> int:
        """See :class:`DeviceBackend`: where the profile of a graph ends."""
        most = [
            max(profile["n"].most for profile in engine.profiles if "n" in profile)
            for engine in self._record.engines.values()
            if any("n" in profile for profile in engine.profiles)
        ]
        return min(most)

    @property
    def resident_bytes(self) -> int:
        """An engine's file is its weights and code."""
        return sum(self._record.engines[name].bytes for name in self._engines)

    def tidying(self) -> AbstractContextManager[None]:
        """See :class:`DeviceBackend`: nothing is kept."""
        return nullcontext()

    def stream(self) -> Stream:
        """See :class:`DeviceBackend`."""
        return self._stream

    def scratch_bytes(self) -> int:
        """Largest scratch of the loaded engines, over all of their profiles."""
        return max((engine.device_memory_size_v2 for engine in self._engines.values()), default=0)

    def load(self, *graphs: str) -> None:
        """See :class:`DeviceBackend`."""
        for graph in graphs:
            if graph not in self._engines:
                self._engines[graph] = self._load(graph)

    def bind(
        self,
        graph: str,
        inputs: Mapping[str, Binding],
        outputs: Mapping[str, Binding],
        *,
        scratch: int = 0,
    ) -> Callable[[], None]:
        """See :class:`DeviceBackend`."""
        self.load(graph)
        shapes = tuple((name, inputs[name].shape) for name in self._dynamic(graph))
        if (graph, shapes) not in self._contexts:
            self._contexts[graph, shapes] = self._made(graph, shapes)
        addresses = {name: one.address for name, one in {**inputs, **outputs}.items()}

        def run() -> None:
            with self._device.current():
                what = self._enqueued(graph, shapes, addresses, scratch)
            if what is not None:
                raise self._failure(f"graph {graph!r} {what} in {self.description}")

        return run

    def _enqueued(
        self, graph: str, shapes: _Shapes, addresses: Mapping[str, int], scratch: int
    ) -> str | None:
        """Give a graph to the stream; what went wrong, if anything did.

        The context is looked up, so that it is freed when it is released, with the device current:
        neither a call that somebody has bound nor the traceback of its failure keeps it.
        """
        context = self._contexts.get((graph, shapes))
        if context is None:
            raise BackendError(f"graph {graph!r} was released; bind it anew")
        self._said.clear()
        # Other chunks of the same shapes use the context too.
        size = self._engines[graph].device_memory_size_v2
        context.set_device_memory(scratch, size)
        # The call itself says nothing, and the memory before would stay.
        if size and self._said.errors():
            return f"refuses the scratch at {scratch:#x}"
        refused = [
            name for name, at in addresses.items() if not context.set_tensor_address(name, at)
        ]
        if refused:
            return f"refuses the addresses of {', '.join(refused)}"
        return None if context.execute_async_v3(self._stream.handle) else "failed"

    def release(self, graph: str) -> None:
        """See :class:`DeviceBackend`."""
        with self._device.current():
            for key in [key for key in self._contexts if key[0] == graph]:
                del self._contexts[key]
            self._engines.pop(graph, None)

    def unload(self) -> None:
        """See :class:`DeviceBackend`."""
        with self._device.current():
            self._contexts.clear()
            self._engines.clear()

    def close(self) -> None:
        """See :class:`DeviceBackend`."""
        if self._closed:
            return
        self._closed = True
        with suppress(DeviceError):  # it was closed too early
            if self._compiled is not None:
                with self._device.current():
                    self._compiled.keep(next(iter(self._files.values())))
            self.unload()
            with self._device.current():
                self._drop_library()
        self._contexts.clear()
        self._engines.clear()
        self._drop_library()

    def _drop_library(self) -> None:
        if self._compiled is not None:
            self._compiled.close()
        self._runtime = None

    def _started(self) -> Any:
        try:
            with self._device.current():
                runtime = self._trt.Runtime(self._said.logger)
        except TypeError as error:  # a constructor of the bindings that got nothing
            raise self._failure(
                f"{self.description} cannot start, as where it is for a newer CUDA than the driver"
            ) from error
        not_freed_in_children(runtime)
        return runtime

    def _load(self, graph: str) -> Any:
        if self._closed:
            raise BackendError("the backend is closed; make a new Segmenter")
        if graph not in self._files:
            raise BackendError(
                f"there is no engine of {graph!r}; there are {', '.join(self._files)}"
            )
        self._said.clear()
        with self._device.current():
            engine = self._runtime.deserialize_cuda_engine(self._files[graph].read_bytes())
        if engine is None:
            raise self._failure(f"{self.description} cannot load the engine of graph {graph!r}")
        # An engine of another build runs as well, and computes something else.
        sha256 = self._record.engines[graph].sha256
        require_unchanged(self._files[graph], sha256, self._states[graph])
        not_freed_in_children(engine)
        return engine

    def _made(self, graph: str, shapes: _Shapes) -> Any:
        """A context of a graph for shapes."""
        with self._device.current():
            return self._made_here(graph, shapes)

    def _made_here(self, graph: str, shapes: _Shapes) -> Any:
        self._said.clear()
        context = self._context(self._engines[graph])
        what = f"{self.description} cannot run graph {graph!r} at {dict(shapes)}"
        if context is None:
            raise self._failure(what)
        not_freed_in_children(context)
        profile = self._profile(graph, shapes)
        if profile and not context.set_optimization_profile_async(profile, self._stream.handle):
            raise self._failure(what)
        if not all(context.set_input_shape(name, shape) for name, shape in shapes):
            raise self._failure(what)
        return context

    def _context(self, engine: Any) -> Any:
        """A context whose scratch is ours; None where the library refuses."""
        managed = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        strategies = getattr(self._trt, "DynamicShapesKernelSpecializationStrategy", None)
        if strategies is None:
            return engine.create_execution_context(managed)
        # TensorRT-RTX compiles kernels for a shape in the background and runs slower ones until
        # they are there: an image that is captured meanwhile would launch those for ever.
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(managed)
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        if self._compiled is not None:
            self._compiled.give(config)
        return engine.create_execution_context(config)

    def _profile(self, graph: str, shapes: _Shapes) -> int:
        """The profile that is tuned for the fewest categories among those that take the shapes."""
        sizes = self._sizes(graph, shapes)
        profiles = self._record.engines[graph].profiles
        fitting = [
            (_span(profile), index)
            for index, profile in enumerate(profiles)
            if all(
                profile[axis].least <= size <= profile[axis].most for axis, size in sizes.items()
            )
        ]
        if profiles and not fitting:
            raise BackendError(
                f"the engine of graph {graph!r} takes no {sizes}; its profiles end at "
                f"{[{axis: one.most for axis, one in profile.items()} for profile in profiles]}"
            )
        return min(fitting, default=(0, 0))[1]

    def _dynamic(self, graph: str) -> list[str]:
        """Inputs with a dynamic axis."""
        return [
            spec.name
            for spec in self._stages[graph].inputs
            if any(isinstance(axis, str) for axis in spec.shape)
        ]

    def _sizes(self, graph: str, shapes: _Shapes) -> dict[str, int]:
        given = dict(shapes)
        return {
            axis: size
            for spec in self._stages[graph].inputs
            if spec.name in given
            for axis, size in zip(spec.shape, given[spec.name], strict=True)
            if isinstance(axis, str)
        }

    def _failure(self, what: str) -> BackendError | OutOfDeviceMemory:
        said = "; ".join(self._said.errors() or self._said.warnings()) or "it gives no reason"
        kind = OutOfDeviceMemory if _NO_MEMORY.search(said) else BackendError
        return kind(f"{what}: {said}")


def _span(profile: Profile) -> int:
    return sum(one.most for one in profile.values())


class _Said:
    """A logger of the library's class that keeps the first errors and warnings.

    The library may log from threads of its own, and also while nothing is run.
    """

    def __init__(self, trt: Any) -> None:
        self._lock = threading.Lock()
        self._errors: list[str] = []
        self._warnings: list[str] = []
        base: Any = trt.ILogger
        severity = trt.ILogger.Severity
        keep, errors, warnings = self._keep, self._errors, self._warnings

        class Log(base):  # type: ignore[misc]
            def __init__(self) -> None:
                base.__init__(self)

            def log(self, level: Any, message: str) -> None:
                if level in (severity.ERROR, severity.INTERNAL_ERROR):
                    keep(message, errors)
                elif level == severity.WARNING:
                    keep(message, warnings)

        self.logger = Log()
        # The library keeps the address of the first logger it is given as long as there is any
        # runtime or builder in the process, also where the one that came with it is gone.
        never_freed(self.logger)

    def errors(self) -> list[str]:
        """The first ones since :meth:`clear`: those that follow are what comes of them."""
        with self._lock:
            return list(self._errors)

    def warnings(self) -> list[str]:
        """The first ones since :meth:`clear`: of some failures the library says no more."""
        with self._lock:
            return list(self._warnings)

    def clear(self) -> None:
        """Forget what was said before: the next failure has reasons of its own."""
        with self._lock:
            self._errors.clear()
            self._warnings.clear()

    def _keep(self, message: str, kept: list[str]) -> None:
        with self._lock:
            if len(kept) < _MOST_REASONS:
                kept.append(message)
        _LOG.debug("%s", message)
