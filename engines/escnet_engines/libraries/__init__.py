"""The compilers, one module each; the factory imports only the one that is asked for."""

import importlib
import re
from typing import Final

from escnet_runtime.engines import Compiler
from escnet_runtime.errors import BackendError

from ..library import Library

__all__ = ["COMPILERS", "open_library"]

COMPILERS: Final[tuple[Compiler, ...]] = ("tensorrt", "tensorrt-rtx")
_MODULES: Final = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
#: Strongly typed networks are whole from this version on.
_OLDEST: Final = {"tensorrt": (10, 12), "tensorrt-rtx": (1, 7)}


def open_library(backend: Compiler) -> Library:
    """The compiler called ``backend``.

    Raises:
        BackendError: it is not installed, too old, or does not load; says what to install.
    """
    extra = f"escnet-engines[{backend}]"
    try:
        module = importlib.import_module(f".{_MODULES[backend]}", __name__)
    except ModuleNotFoundError as error:
        raise BackendError(
            f"backend {backend!r} needs the Python package {error.name}, which is not installed; "
            f"install {extra}"
        ) from error
    except (ImportError, OSError) as error:  # its shared libraries are missing or do not fit
        raise BackendError(
            f"backend {backend!r} is installed and does not load: {error}; install {extra} anew"
        ) from error
    library: Library = module.LIBRARY
    oldest = _OLDEST[backend]
    if tuple(int(part) for part in re.findall(r"\d+", library.version)[:2]) < oldest:
        least = ".".join(map(str, oldest))
        raise BackendError(
            f"backend {backend!r} is here in version {library.version}, needed is {least} or "
            f"newer: update it, or install {extra}"
        )
    return library
