"""Backends, one module each; the factory imports only the one that is asked for."""

import importlib.util
import logging
from collections.abc import Mapping

from ..errors import BackendError
from .base import Backend, GraphFile

__all__ = ["BACKENDS", "Backend", "GraphFile", "create_backend"]

BACKENDS = ("auto", "onnxruntime", "onnxruntime-cuda")

_LOG = logging.getLogger("escnet_runtime")


def create_backend(graphs: Mapping[str, GraphFile], name: str = "auto") -> Backend:
    """The backend called ``name`` for ``graphs``; ``"auto"`` logs what it chose and why.

    Raises:
        BackendError: the name is unknown, or the library or device it needs is not here.
    """
    if name not in BACKENDS:
        raise BackendError(f"backend {name!r} is unknown; expected one of {', '.join(BACKENDS)}")
    if importlib.util.find_spec("onnxruntime") is None:
        raise BackendError(
            f"backend {name!r} needs ONNX Runtime, which is not installed; install "
            "escnet-runtime[onnxruntime], or [onnxruntime-gpu] for CUDA"
        )
    from .onnxruntime import OnnxRuntimeBackend  # noqa: PLC0415: optional library

    backend = OnnxRuntimeBackend(graphs, provider="cuda" if name.endswith("cuda") else "cpu")
    if name == "auto":
        _LOG.info(
            "backend 'auto' chose onnxruntime (%s): the only backend of this version that needs no "
            "GPU; choose 'onnxruntime-cuda' by name for a GPU",
            backend.description,
        )
    return backend
