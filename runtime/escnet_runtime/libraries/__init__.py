"""TensorRT's bindings, one module each; the factory imports only the one that is asked for."""

import importlib
import platform
from typing import Any, Final

from ..engine_record import Compiler
from ..errors import BackendError

__all__ = ["open_bindings", "what_installs"]

_MODULES: Final[dict[Compiler, str]] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


def open_bindings(backend: Compiler, distribution: str = "escnet-runtime") -> Any:
    """The Python module of a backend's library.

    Args:
        backend: which.
        distribution: whose extra of that name installs it, for the message.

    Raises:
        BackendError: it is not installed, or does not load; says what to install.
    """
    try:
        module = importlib.import_module(f".{_MODULES[backend]}", __name__)
    except ModuleNotFoundError as error:
        raise BackendError(
            f"backend {backend!r} needs the Python package {error.name}, which is not installed; "
            f"install {what_installs(backend, distribution)}"
        ) from error
    except (ImportError, OSError) as error:  # its shared libraries are missing or do not fit
        raise BackendError(
            f"backend {backend!r} is installed and does not load: {error}; install "
            f"{distribution}[{backend}] anew"
        ) from error
    return module.BINDINGS


def what_installs(backend: Compiler, distribution: str = "escnet-runtime") -> str:
    """The extra of a distribution that brings a backend's library, for messages."""
    extra = f"{distribution}[{backend}]"
    if backend == "tensorrt" and platform.machine() == "aarch64":
        # No other environment sees it, and what the extra fetches is not for its GPU.
        return (
            f"{extra}, or, on a Jetson, use JetPack's own: python3 -m venv --system-site-packages"
        )
    return extra
