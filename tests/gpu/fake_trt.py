"""A made-up TensorRT: the calls of its bindings that the runtime makes, over the made-up graphs."""

import enum
import inspect
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from escnet_runtime.engine_record import AxisRange, Engine, EngineRecord, Fingerprint, Profile
from escnet_runtime.gpu.backend import Binding
from escnet_runtime.manifest import Manifest
from tests.device.host_device import HostDevice
from tests.gpu.made_up import MadeUpGraphs

__all__ = ["CLASSES", "FakeTrt", "FakeTrtRtx", "made_up_record", "runtime_calls"]

SCRATCH = 5000


def made_up_record(manifest: Manifest, chunks: tuple[int, ...]) -> EngineRecord:
    """Of engines with a profile for each chunk."""
    group = manifest.constants.group

    def profile(axes: set[str], chunk: int) -> Profile:
        most = {"n": chunk, "g": chunk // group, "b": 1, "t": 64, "l": 77}
        return {axis: AxisRange(least=1, tuned=most[axis], most=most[axis]) for axis in axes}

    engines = {}
    for name, stage in manifest.stages.items():
        axes = {axis for spec in stage.inputs for axis in spec.shape if isinstance(axis, str)}
        engines[name] = Engine(
            file=f"{name}.engine",
            sha256="0" * 64,
            bytes=100,
            onnx_sha256="0" * 64,
            profiles=tuple(profile(axes, chunk) for chunk in chunks) if "n" in axes else (),
            scratch_bytes=SCRATCH,
            seconds=1.0,
        )
    fingerprint = Fingerprint(
        backend="tensorrt", version="11.4.0", targets=("sm_90",), driver=None, os="linux-x86_64"
    )
    return EngineRecord(fingerprint=fingerprint, engines=engines)


class _Severity(enum.IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class _Logger:
    Severity = _Severity

    def log(self, severity: _Severity, message: str) -> None:
        raise NotImplementedError


class FakeTrt:
    """Stands for the module. An engine's bytes are the JSON of its graph's name.

    Attributes:
        contexts: (graph, shapes of its inputs, profile) of every context that has run.
        broken: graphs whose execution returns False, with what is logged.
        freed_elsewhere: what was freed while the device was not current.
        specialized: how contexts of TensorRT-RTX are to compile kernels for a shape.
    """

    __version__ = "11.4.0"
    ILogger = _Logger
    ExecutionContextAllocationStrategy = enum.Enum(
        "ExecutionContextAllocationStrategy", ["STATIC", "USER_MANAGED"]
    )

    def __init__(self, manifest: Manifest, device: HostDevice) -> None:
        self.manifest, self.device = manifest, device
        self.broken: dict[str, str] = {}
        self.freed_elsewhere: list[str] = []
        self.specialized: set[str] = set()
        self.ran: list[tuple[str, tuple[tuple[str, tuple[int, ...]], ...], int]] = []
        self.logger: Any = None
        self.graphs: MadeUpGraphs | None = None

    def Runtime(self, logger: Any) -> "_Runtime":
        self.require_current()
        self.logger = logger
        return _Runtime(self)

    def require_current(self) -> None:
        """The real one takes the thread's current context for its device."""
        assert self.device.is_current(), "another context than the device's is current"

    def say(self, message: str) -> None:
        """Log an error."""
        self.logger.log(_Severity.ERROR, message)


class FakeTrtRtx(FakeTrt):
    """Stands for TensorRT-RTX, which compiles kernels for a shape when it sees it.

    Attributes:
        compiled: graphs that a context was compiled for, in order.
        driver: what is compiled with; what another one compiled is refused.
    """

    DynamicShapesKernelSpecializationStrategy = enum.Enum(
        "DynamicShapesKernelSpecializationStrategy", ["LAZY", "EAGER", "NONE"]
    )
    driver = "13.0"

    def __init__(self, manifest: Manifest, device: HostDevice) -> None:
        super().__init__(manifest, device)
        self.compiled: list[str] = []


class _Runtime:
    def __init__(self, trt: FakeTrt) -> None:
        self._trt = trt

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> "_Engine | None":
        self._trt.require_current()
        try:
            return _Engine(self._trt, json.loads(serialized_engine))
        except ValueError:
            self._trt.say("magic tag does not match")
            return None


class _Engine:
    device_memory_size_v2 = SCRATCH

    def __init__(self, trt: FakeTrt, graph: str) -> None:
        self.trt, self.graph = trt, graph

    def create_runtime_config(self) -> "_RuntimeConfig":
        assert isinstance(self.trt, FakeTrtRtx), "TensorRT has none"
        return _RuntimeConfig(self.trt)

    def create_execution_context(self, strategy: "enum.Enum | _RuntimeConfig") -> "_Context":
        self.trt.require_current()
        if isinstance(strategy, _RuntimeConfig):
            specialization = strategy.dynamic_shapes_kernel_specialization_strategy
            assert specialization is not None
            self.trt.specialized.add(specialization.name)
            assert strategy.allocation is not None
            assert isinstance(self.trt, FakeTrtRtx)
            cache = strategy.cache
            if cache is None or self.graph not in cache.compiled:
                self.trt.compiled.append(self.graph)
            if cache is not None:
                cache.compiled.add(self.graph)
            strategy = strategy.allocation
        assert strategy.name == "USER_MANAGED"
        return _Context(self)


class _RuntimeCache:
    """Its content names the shapes that were compiled, and whose it is."""

    def __init__(self, trt: "FakeTrtRtx") -> None:
        self._trt, self.compiled = trt, set[str]()

    def deserialize(self, blob: bytes) -> bool:
        self._trt.require_current()
        document = json.loads(blob)
        if document["driver"] != self._trt.driver:
            return False
        self.compiled |= set(document["compiled"])
        return True

    def serialize(self) -> bytes:
        self._trt.require_current()
        document = {"driver": self._trt.driver, "compiled": sorted(self.compiled)}
        return json.dumps(document).encode()


class _RuntimeConfig:
    dynamic_shapes_kernel_specialization_strategy: enum.Enum | None = None

    def __init__(self, trt: "FakeTrtRtx") -> None:
        self._trt = trt
        self.allocation: enum.Enum | None = None
        self.cache: _RuntimeCache | None = None

    def create_runtime_cache(self) -> _RuntimeCache:
        return _RuntimeCache(self._trt)

    def set_runtime_cache(self, cache: _RuntimeCache) -> bool:
        self.cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy: enum.Enum) -> None:
        self.allocation = strategy


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self._engine, self._trt = engine, engine.trt
        self._stage = self._trt.manifest.stages[engine.graph]
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._profile = 0
        self._ran = False
        self._memory: tuple[int, int] | None = None

    def __del__(self) -> None:
        if not self._trt.device.is_current():
            self._trt.freed_elsewhere.append(self._engine.graph)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._trt.require_current()
        self._profile = profile_index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert not self._ran, "a context that has run never changes its shapes"
        self._shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return memory % 256 == 0

    def set_device_memory(self, memory: int, size: int) -> None:
        if memory % 512:  # the real call returns nothing either; what was set before stays
            self._trt.say("setDeviceMemory: memory must be aligned on 512 byte boundary")
            return
        self._memory = (memory, size)

    def execute_async_v3(self, stream_handle: int) -> bool:
        graph, trt = self._engine.graph, self._trt
        trt.require_current()
        if graph in trt.broken:
            if trt.broken[graph]:
                trt.say(trt.broken[graph])
            return False
        assert self._memory is not None
        assert self._memory[1] == SCRATCH
        self._ran = True
        trt.ran.append((graph, tuple(self._shapes.items()), self._profile))
        self._run()()
        return True

    def _run(self) -> Callable[[], None]:
        assert self._trt.graphs is not None
        stage = self._stage
        given = {
            spec.name: self._shapes.get(spec.name, tuple(a for a in spec.shape if a != "b"))
            for spec in stage.inputs
        }
        axes: dict[Any, Any] = {
            axis: size
            for spec in stage.inputs
            if spec.name in self._shapes
            for axis, size in zip(spec.shape, given[spec.name], strict=True)
        }

        def binding(name: str, dtype: Any, shape: tuple[int | str, ...]) -> Binding:
            sizes = tuple(int(axes[axis]) if isinstance(axis, str) else axis for axis in shape)
            return Binding(self._addresses[name], dtype, sizes)

        inputs = {s.name: binding(s.name, s.dtype, s.shape) for s in stage.inputs}
        outputs = {s.name: binding(s.name, s.dtype, s.shape) for s in stage.outputs}
        return self._trt.graphs.bind(self._engine.graph, inputs, outputs)


CLASSES = SimpleNamespace(
    Runtime=_Runtime,
    ICudaEngine=_Engine,
    IRuntimeCache=_RuntimeCache,
    IRuntimeConfig=_RuntimeConfig,
    IExecutionContext=_Context,
)

#: What TensorRT-RTX alone is asked for: its kernels for a shape, and where they are kept.
_OF_RTX = ("IRuntimeCache", "IRuntimeConfig", "ICudaEngine.create_runtime_config")


def runtime_calls(*, rtx: bool) -> dict[str, set[int]]:
    """ "Class.member" → numbers of arguments, of all that the runtime asks of its library."""
    calls: dict[str, set[int]] = {
        "ExecutionContextAllocationStrategy.USER_MANAGED": set(),
        "Runtime.__init__": {1},
    }
    for name, kind in vars(CLASSES).items():
        for member, value in vars(kind).items():
            label = f"{name}.{member}"
            if member.startswith("_") or (not rtx and label.startswith(_OF_RTX)):
                continue
            called = inspect.isfunction(value)
            calls[label] = {len(inspect.signature(value).parameters) - 1} if called else set()
    return calls
