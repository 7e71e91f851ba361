"""Which backend runs a bundle here. What was asked for by name is used or refused."""

import importlib.util
import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..backends import BACKENDS, Backend, GraphFile, create_backend, does_not_load
from ..bundle import Bundle
from ..device import open_device
from ..device.base import Device, Stream
from ..engine_record import Compiler
from ..engines import find_engines, fingerprint_here
from ..errors import BackendError, BundleError, DeviceError, EngineMismatchError
from ..manifest import Precision
from ..nvidia import broken_driver, find_gpu
from .backend import DeviceBackend
from .bridge import BridgedGraphs
from .pipeline import DevicePipeline

__all__ = ["DEVICE_CHUNK", "Chosen", "choose_backend"]

_LOG = logging.getLogger("escnet_runtime")

#: Categories at a time on a GPU where nothing else is said: 37,000 pixels of a grid of 24×24.
DEVICE_CHUNK: Final = 64

#: The fastest first.
_ON_A_GPU: Final = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda")

#: (bundle, device, stream, chunk) → what runs the bundle's graphs there.
Opener = Callable[[Bundle, Device, Stream, int | None], DeviceBackend]


@dataclass(slots=True, kw_only=True)
class Chosen:
    """The backend that runs a bundle, with its device and engines.

    Attributes:
        backend: for the pipeline that keeps its tensors on the host.
        device: the pipeline on a device; None on the CPU.
    """

    backend: Backend
    device: DevicePipeline | None
    owned: ExitStack

    def close(self) -> None:
        """Free everything."""
        self.owned.close()


def choose_backend(
    bundle: Bundle,
    name: str,
    *,
    device: Device | None = None,
    chunk: int | None = None,
    cache: Path | None = None,
) -> Chosen:
    """What ``name`` stands for; "auto" takes the fastest that is installed and fits, and says so.

    Args:
        bundle: opened.
        name: one of BACKENDS.
        device: where to run; by default the first visible GPU, for a backend that needs one.
        chunk: categories at a time; what suits the backend by default.
        cache: see :func:`escnet_runtime.backends.create_backend`; for TensorRT-RTX, what it has
            compiled for the GPU.

    Raises:
        BackendError: the name is unknown, or a library is not here.
        DeviceError: there is no GPU, or it cannot be used.
        EngineMismatchError: the bundle has no engines that fit.
        BundleError: those that it has are damaged.
    """
    if name not in BACKENDS:
        raise BackendError(f"backend {name!r} is unknown; expected one of {', '.join(BACKENDS)}")
    if name == "auto":
        return _automatic(bundle, device, chunk, cache)
    if name in _ON_A_GPU:
        return on_device(bundle, _opener(name, cache), device=device, chunk=chunk)
    return _on_the_cpu(bundle, name, cache)


def on_device(
    bundle: Bundle, opener: Opener, *, device: Device | None = None, chunk: int | None = None
) -> Chosen:
    """A pipeline on a device with what ``opener`` makes; for :func:`choose_backend`, see there."""
    manifest = bundle.manifest
    with ExitStack() as owned:
        if device is None:
            device = owned.enter_context(open_device())
        stream = owned.enter_context(device.stream())
        backend = opener(bundle, device, stream, chunk)
        owned.callback(backend.close)
        chunk = chunk or backend.most_rows or DEVICE_CHUNK
        pipeline = DevicePipeline(device, backend, manifest, chunk=chunk)
        owned.callback(pipeline.close)
        return Chosen(
            backend=BridgedGraphs(device, backend, manifest, make_room=pipeline.make_room),
            device=pipeline,
            owned=owned.pop_all(),
        )


def _automatic(
    bundle: Bundle, device: Device | None, chunk: int | None, cache: Path | None
) -> Chosen:
    reasons, damaged, broken = [], False, None
    if device is None and find_gpu() is None:
        broken = broken_driver()
        reasons.append(broken or "there is no NVIDIA GPU with a driver")
    else:
        for name in _ON_A_GPU:
            try:
                chosen = on_device(bundle, _opener(name, cache), device=device, chunk=chunk)
            except (BackendError, DeviceError, BundleError) as error:
                reasons.append(f"not {name}: {error}")
                damaged |= isinstance(error, BundleError) and not isinstance(
                    error, EngineMismatchError
                )
                continue
            _say(chosen, reasons, logging.WARNING if damaged else logging.INFO)
            return chosen
    # With a GPU at hand, also one whose driver is broken, the CPU is not what somebody expects.
    level = logging.INFO if len(reasons) == 1 and broken is None else logging.WARNING
    chosen = _automatic_on_the_cpu(bundle, reasons, cache)
    _say(chosen, reasons, level)
    return chosen


def _automatic_on_the_cpu(bundle: Bundle, reasons: list[str], cache: Path | None) -> Chosen:
    """The first that is installed and runs the bundle; what is said against others is added."""
    names = ["onnxruntime", "openvino"]
    if any(file.precision is Precision.BF16 for file in _files(bundle).values()):
        names.reverse()  # ONNX Runtime emulates bf16, which takes several times as long
    refusals: dict[str, BackendError] = {}
    for name in names:
        try:
            chosen = _on_the_cpu(bundle, name, cache)
        except BackendError as error:
            refusals[name] = error
            continue
        reasons += [f"not {other}: {error}" for other, error in refusals.items()]
        return chosen
    raise refusals["onnxruntime"]


def _say(chosen: Chosen, reasons: list[str], level: int) -> None:
    why = "; ".join(reasons) or "the fastest there is"
    _LOG.log(
        level,
        "backend 'auto' chose %s (%s): %s",
        chosen.backend.name,
        chosen.backend.description,
        why,
    )


def _on_the_cpu(bundle: Bundle, name: str, cache: Path | None) -> Chosen:
    owned = ExitStack()
    backend = create_backend(_files(bundle), name, cache=cache)
    owned.callback(backend.close)
    return Chosen(backend=backend, device=None, owned=owned)


def _opener(name: str, cache: Path | None) -> Opener:
    """The function that opens the backend of that name, whose library is imported here."""
    if name == "onnxruntime-cuda":
        return _onnxruntime()
    return _engines("tensorrt" if name == "tensorrt" else "tensorrt-rtx", cache)


def _engines(backend: Compiler, cache: Path | None) -> Opener:
    from ..libraries import open_bindings
    from .tensorrt import EngineGraphs

    bindings = open_bindings(backend)

    def make(bundle: Bundle, device: Device, stream: Stream, chunk: int | None) -> DeviceBackend:
        version, capability = str(bindings.__version__), device.compute_capability
        here = fingerprint_here(backend, version, capability=capability)
        record, files = find_engines(bundle, here, chunk=chunk)
        stages = bundle.manifest.stages
        return EngineGraphs(bindings, record, files, stages, device, stream, cache=cache)

    return make


def _onnxruntime() -> Opener:
    if importlib.util.find_spec("onnxruntime") is None:
        raise BackendError(
            "backend 'onnxruntime-cuda' needs ONNX Runtime, which is not installed; install "
            "escnet-runtime[onnxruntime-gpu]"
        )
    try:
        from .onnxruntime import OrtGraphs, require_provider
    except (ImportError, OSError) as error:
        raise does_not_load("onnxruntime-cuda", "onnxruntime-gpu", error) from error
    require_provider("cuda")  # before a GPU is opened for it

    def make(bundle: Bundle, device: Device, stream: Stream, chunk: int | None) -> DeviceBackend:
        files = _files(bundle)
        graphs = OrtGraphs(files, device, stream)
        try:
            # A provider that is compiled in may lack its libraries: only a session shows it. And it
            # may lack bfloat16 for an operator, which only the session of that graph shows.
            bf16 = any(file.precision is Precision.BF16 for file in files.values())
            graphs.load(*(files if bf16 else [_smallest(bundle)]))
        except BaseException:
            graphs.close()
            raise
        return graphs

    return make


def _smallest(bundle: Bundle) -> str:
    """The graph that is loaded soonest."""
    stages = bundle.manifest.stages
    return min(stages, key=lambda name: stages[name].bytes)


def _files(bundle: Bundle) -> dict[str, GraphFile]:
    return {
        name: GraphFile.of(bundle.file(stage.file), stage)
        for name, stage in bundle.manifest.stages.items()
    }
