"""TensorRT 10, TensorRT 11 and TensorRT-RTX behind one interface; only this file knows them apart.

What differs:

- TensorRT compiles for the GPU it runs on; TensorRT-RTX for any list of GPUs, even without a GPU.
- Networks take their types from the ONNX file. TensorRT 10 needs a flag for that, which 11 and RTX
  accept.
- TensorRT has a timing cache; RTX's does nothing, and its functions are deprecated.
- RTX engines use memory from the caller only if they were built to.

The library keeps a pointer to the first logger it is given while any builder or runtime exists in
the process, whoever owns it. So no logger is ever freed.
"""

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from escnet_runtime.engine_record import Compiler, Profile
from escnet_runtime.errors import BackendError
from escnet_runtime.forks import never_freed
from escnet_runtime.manifest import TensorSpec

from .errors import BuildError, BuildMemoryError
from .monitor import BuildState
from .survey import live_bytes, set_sizes

__all__ = ["Compiled", "Job", "Library"]

#: GPUs that TensorRT-RTX lists but cannot build any bundle for: 1.7.1 has no float32 matrix product
#: for Turing ("FP32 GEMM is not supported"), and the graphs have some at every precision.
_WITHOUT_FLOAT32: Final = frozenset(["sm_75"])
_NO_MEMORY: Final = re.compile(
    r"out ?of ?memory|workspace limit|bad_alloc|insufficient (memory|workspace)", re.IGNORECASE
)
_ACTIVATIONS: Final = re.compile(r"Total Activation Memory: (\d+) bytes")
_MESSAGES_SHOWN: Final = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One graph to compile.

    Attributes:
        onnx: the file.
        inputs: its inputs, with their named dynamic axes.
        profiles: sizes of these axes.
        targets: GPUs to compile for, such as "sm_86".
        workspace: largest scratch memory of one layer, in bytes; None for no limit.
    """

    onnx: Path
    inputs: tuple[TensorSpec, ...]
    profiles: tuple[Profile, ...]
    targets: tuple[str, ...]
    workspace: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """An engine: its content (the library's own buffer), and the bytes its activations need."""

    plan: Any
    scratch_bytes: int | None


class Library:
    """A compiler.

    Args:
        backend: its name.
        module: its Python bindings.
    """

    def __init__(self, backend: Compiler, module: Any) -> None:
        self.backend: Compiler = backend
        self._trt = module
        self._log = _log(module)
        self._timing: bytes | None = None

    @property
    def version(self) -> str:
        """The full version, such as "11.4.0.12"."""
        return str(self._trt.__version__)

    @property
    def compiles_ahead(self) -> bool:
        """Whether it can compile for GPUs that are not in this machine."""
        return self.backend == "tensorrt-rtx"

    def targets(self) -> tuple[str, ...]:
        """The GPUs that it can compile our graphs for without having them."""
        if not self.compiles_ahead:
            return ()
        names = [name.lower() for name in self._trt.ComputeCapability.__members__]
        found = (name.replace("sm", "sm_") for name in names if re.fullmatch(r"sm\d+", name))
        return tuple(name for name in found if name not in _WITHOUT_FLOAT32)

    def compile(self, job: Job, state: BuildState) -> Compiled:
        """Compile one graph; may take minutes.

        Args:
            job: the graph.
            state: receives the progress and says whether to stop.

        Raises:
            BackendError: the library cannot start on this machine.
            BuildError: the library refuses the graph; names the ONNX node if the library does.
            BuildMemoryError: it does not fit the memory.
        """
        with self._log.recording() as messages:
            builder = self._builder(messages)
            network, _parser = self._parsed(builder, job.onnx)  # the parser owns the weights
            monitor = _monitor(self._trt, state)  # must outlive the configuration
            config = self._config(builder, job, monitor)
            plan = builder.build_serialized_network(network, config)
            if self._timing is not None:
                self._timing = bytes(config.get_timing_cache().serialize())
            if plan is None:
                layers = [network.get_layer(i).name for i in range(network.num_layers)]
                raise _build_failure(messages.errors, layers)
        sizes = [int(size) for line in messages.all for size in _ACTIVATIONS.findall(line)]
        return Compiled(plan=plan, scratch_bytes=max(sizes, default=None))

    def survey(self, job: Job) -> tuple[int, ...]:
        """Most bytes of a graph's results alive at once, for each profile; takes about a second.

        Raises:
            BackendError: the library cannot start on this machine.
            BuildError: the library cannot read the graph; names the ONNX node.
        """
        with self._log.recording() as messages:
            network, _parser = self._parsed(self._builder(messages), job.onnx)
            found = []
            for profile in job.profiles or (None,):
                set_sizes(network, job.inputs, profile)
                found.append(live_bytes(network, self._trt.LayerType.CONSTANT))
        return tuple(found)

    def use_timing_cache(self, content: bytes) -> None:
        """Start from the timings of earlier builds, if the library has such a cache.

        A cache of another version or GPU is ignored, and a new one begun.
        """
        if self.backend == "tensorrt":
            self._timing = content

    def timing_cache(self) -> bytes | None:
        """The timings so far; None if the library has no such cache."""
        return self._timing

    def _builder(self, messages: "_Messages") -> Any:
        try:
            return self._trt.Builder(self._log)
        except TypeError as error:  # the bindings' constructor got a null pointer
            told = (messages.errors or messages.all)[:_MESSAGES_SHOWN]
            raise BackendError(
                f"{self.backend} {self.version} cannot start, often because the driver is too old "
                f"for its CUDA. The library's reason: {'; '.join(told) or 'none given'}"
            ) from error

    def _parsed(self, builder: Any, onnx: Path) -> tuple[Any, Any]:
        """The network in a file, and its parser, which must outlive it."""
        typed = self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        network = builder.create_network(1 << int(typed))
        parser = self._trt.OnnxParser(network, self._log)
        if not parser.parse_from_file(str(onnx)):
            raise BuildError(_parse_failure(parser))
        return network, parser

    def _config(self, builder: Any, job: Job, monitor: Any) -> Any:
        trt = self._trt
        config = builder.create_builder_config()
        config.progress_monitor = monitor
        # The precision is in the file: float32 there means float32.
        config.clear_flag(trt.BuilderFlag.TF32)
        if job.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace)
        if self.compiles_ahead:
            config.num_compute_capabilities = len(job.targets)
            for index, target in enumerate(job.targets):
                capability = trt.ComputeCapability.__members__[target.replace("_", "").upper()]
                config.set_compute_capability(capability, index)
            # All graphs of a bundle share one scratch, which the runtime owns.
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        if self._timing is not None:
            known = config.create_timing_cache(self._timing)
            if known is None or not config.set_timing_cache(known, False):
                config.set_timing_cache(config.create_timing_cache(b""), False)
        for profile in job.profiles:
            config.add_optimization_profile(_profile(builder, job.inputs, profile))
        return config


def _profile(builder: Any, inputs: Sequence[TensorSpec], profile: Profile) -> Any:
    made = builder.create_optimization_profile()
    for spec in inputs:
        ranges = [profile[axis] for axis in spec.shape if isinstance(axis, str)]
        if not ranges:
            continue
        shapes = [
            [getattr(profile[axis], end) if isinstance(axis, str) else axis for axis in spec.shape]
            for end in ("least", "tuned", "most")
        ]
        made.set_shape(spec.name, *shapes)
    return made


def _parse_failure(parser: Any) -> str:
    """The parser's errors, with the names of the nodes."""
    found = []
    for index in range(min(parser.num_errors, _MESSAGES_SHOWN)):
        error = parser.get_error(index)
        where = ""
        if error.node_name() or error.node_operator():
            where = f"node {error.node_name()!r} ({error.node_operator()}): "
        code = str(error.code()).removeprefix("ErrorCode.")
        found.append(f"{where}{code}: {error.desc().strip()}")
    return "; ".join(found) or "the parser gives no reason"


def _build_failure(errors: Sequence[str], layers: Sequence[str]) -> BuildError:
    """The builder's own messages and the nodes they name; layers are named after their nodes."""
    text = "; ".join(errors[:_MESSAGES_SHOWN]) or "the builder gives no reason"
    named = [
        layer
        for layer in dict.fromkeys(layers)
        if layer and re.search(rf"(?<!\w){re.escape(layer)}(?!\w)", text)
    ]
    where = f"node {', '.join(repr(name) for name in named)}: " if named else ""
    kind = BuildMemoryError if _NO_MEMORY.search(text) else BuildError
    return kind(where + text)


@dataclass(slots=True)
class _Messages:
    all: list[str]
    errors: list[str]


def _log(trt: Any) -> Any:
    """An instance of the library's logger class that keeps messages while it is recording."""
    base: Any = trt.ILogger
    bad = (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)

    class Log(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self._lock = threading.Lock()
            self._messages = _Messages(all=[], errors=[])

        def log(self, severity: Any, message: str) -> None:
            if severity == trt.ILogger.Severity.VERBOSE:
                return
            with self._lock:
                self._messages.all.append(message)
                if severity in bad:
                    self._messages.errors.append(message)

        @contextmanager
        def recording(self) -> Iterator[_Messages]:
            with self._lock:
                self._messages = _Messages(all=[], errors=[])
            yield self._messages

    log = Log()
    never_freed(log)  # see the module's docstring
    return log


def _monitor(trt: Any, state: BuildState) -> Any:
    """An instance of the library's progress monitor class that reports to ``state``."""
    base: Any = trt.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            state.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return state.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            state.finish(phase_name)

    return Monitor()
