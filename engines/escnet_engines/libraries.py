"""The compilers; only the one that is asked for is imported."""

import logging
import re
from typing import Final

from escnet_runtime.engine_record import Compiler
from escnet_runtime.errors import BackendError
from escnet_runtime.libraries import open_bindings

from .library import Library

__all__ = ["COMPILERS", "open_library"]

COMPILERS: Final[tuple[Compiler, ...]] = ("tensorrt", "tensorrt-rtx")
_DISTRIBUTION: Final = "escnet-engines"
#: 10.3 is JetPack 6's.
_OLDEST: Final[dict[Compiler, tuple[int, int]]] = {"tensorrt": (10, 3), "tensorrt-rtx": (1, 7)}
#: Older versions lack some operators in strongly typed networks, which ours are.
_FULLY_TYPED: Final = (10, 12)
_log = logging.getLogger(__name__)


def open_library(backend: Compiler) -> Library:
    """The compiler called ``backend``.

    Raises:
        BackendError: it is not installed, too old, or does not load; says what to install.
    """
    library = Library(backend, open_bindings(backend, _DISTRIBUTION))
    oldest = _OLDEST[backend]
    version = tuple(int(part) for part in re.findall(r"\d+", library.version)[:2])
    if version < oldest:
        least = ".".join(map(str, oldest))
        raise BackendError(
            f"backend {backend!r} is installed in version {library.version}, expected {least} or "
            f"newer: update it, or install {_DISTRIBUTION}[{backend}]"
        )
    if backend == "tensorrt" and version < _FULLY_TYPED:
        _log.warning(
            "TensorRT %s supports strongly typed networks, which these graphs need, by best "
            "effort: %s is the first version that supports them fully. Run escnet-verify to see "
            "whether its engines compute what they should",
            library.version,
            ".".join(map(str, _FULLY_TYPED)),
        )
    return library
