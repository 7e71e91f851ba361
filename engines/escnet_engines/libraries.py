"""The compilers; only the one that is asked for is imported."""

import re
from typing import Final

from escnet_runtime.engine_record import Compiler
from escnet_runtime.errors import BackendError
from escnet_runtime.libraries import open_bindings

from .library import Library

__all__ = ["COMPILERS", "open_library"]

COMPILERS: Final[tuple[Compiler, ...]] = ("tensorrt", "tensorrt-rtx")
_DISTRIBUTION: Final = "escnet-engines"
#: Strongly typed networks are whole from this version on.
_OLDEST: Final = {"tensorrt": (10, 12), "tensorrt-rtx": (1, 7)}


def open_library(backend: Compiler) -> Library:
    """The compiler called ``backend``.

    Raises:
        BackendError: it is not installed, too old, or does not load; says what to install.
    """
    library = Library(backend, open_bindings(backend, _DISTRIBUTION))
    oldest = _OLDEST[backend]
    if tuple(int(part) for part in re.findall(r"\d+", library.version)[:2]) < oldest:
        least = ".".join(map(str, oldest))
        raise BackendError(
            f"backend {backend!r} is here in version {library.version}, needed is {least} or "
            f"newer: update it, or install {_DISTRIBUTION}[{backend}]"
        )
    return library
