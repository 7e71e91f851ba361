"""Backends, one module each; the factory imports only the one that is asked for."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from ..errors import BackendError
from .base import Backend, GraphFile

__all__ = [
    "BACKENDS",
    "Backend",
    "GraphFile",
    "create_backend",
    "does_not_load",
    "library_version",
]

BACKENDS = ("auto", "onnxruntime", "openvino", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx")

#: Those of :data:`BACKENDS` that need no GPU.
_HERE = ("auto", "onnxruntime", "openvino")


def create_backend(
    graphs: Mapping[str, GraphFile], name: str = "onnxruntime", *, cache: Path | None = None
) -> Backend:
    """A backend on the CPU for ``graphs``; what runs on a GPU is in :mod:`escnet_runtime.gpu`.

    Args:
        graphs: by name.
        name: one that needs no GPU.
        cache: folder for what a library makes of a graph; None keeps nothing.

    Raises:
        BackendError: the name is unknown or needs a GPU, or the library is not here or does not
            load.
    """
    if name not in _HERE:
        raise BackendError(
            f"backend {name!r} is none that runs on the CPU; expected one of {', '.join(_HERE)}"
        )
    if name == "openvino":
        return _openvino(graphs, cache)
    if importlib.util.find_spec("onnxruntime") is None:
        raise BackendError(
            f"backend {name!r} needs ONNX Runtime, which is not installed; install "
            "escnet-runtime[onnxruntime], or [onnxruntime-gpu] for CUDA"
        )
    try:
        from .onnxruntime import OnnxRuntimeBackend
    except (ImportError, OSError) as error:
        raise does_not_load(name, "onnxruntime", error) from error
    return OnnxRuntimeBackend(graphs, cache=cache)


def _openvino(graphs: Mapping[str, GraphFile], cache: Path | None) -> Backend:
    if importlib.util.find_spec("openvino") is None:
        raise BackendError(
            "backend 'openvino' needs OpenVINO, which is not installed; install "
            "escnet-runtime[openvino]"
        )
    try:
        from .openvino import OpenVinoBackend
    except (ImportError, OSError) as error:
        raise does_not_load("openvino", "openvino", error) from error
    return OpenVinoBackend(graphs, cache=cache)


def does_not_load(name: str, extra: str, error: Exception) -> BackendError:
    """For a library that is installed, but whose own libraries are missing or do not fit.

    Args:
        name: of the backend.
        extra: of escnet-runtime, that installs the library.
        error: what importing it raised.
    """
    return BackendError(
        f"backend {name!r} is installed and does not load: {error}; install "
        f"escnet-runtime[{extra}] anew, in an environment of its own"
    )


def library_version(name: Literal["onnxruntime", "openvino"]) -> str | None:
    """The version of a CPU backend's library, which is imported for it; None if not installed."""
    try:
        if name == "openvino":
            from .openvino import VERSION as VERSION_OF_OPENVINO

            return VERSION_OF_OPENVINO
        from .onnxruntime import VERSION
    except (ImportError, OSError):
        return None
    return VERSION
