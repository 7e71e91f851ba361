"""The compiled library of this process: loaded at the first use, from the cache if it is there."""

import ctypes
import functools
import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from ..embedding_cache import default_cache_directory

if TYPE_CHECKING:
    from .store import LibraryStore

__all__ = ["NativeLibrary", "NativeStatus", "native_library", "native_status"]

_OFF: Final = ("0", "false", "no", "off")
_LOCK: Final = threading.Lock()
_log = logging.getLogger(__name__)


class NativeLibrary:
    """Functions of the C sources beside this file, which say what they take.

    They release the GIL. Addresses are those of contiguous arrays, which the caller keeps alive.
    """

    def __init__(self, path: Path) -> None:
        """Load a compiled library; raises OSError or AttributeError for a file that is none."""
        library = ctypes.CDLL(str(path))
        pointer, int32, float32 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_float
        self.prompts = library.escnet_prompts
        shape = [ctypes.c_int64, int32, int32]
        self.prompts.argtypes = [pointer, *shape, int32, int32, float32, float32, *[pointer] * 4]
        self.upsample_rows = library.escnet_upsample_rows
        self.upsample_rows.argtypes = [pointer, pointer, *[int32] * 4]
        self.confidence = library.escnet_confidence
        self.confidence.argtypes = [pointer, pointer, ctypes.c_int64]
        for function in (self.prompts, self.upsample_rows, self.confidence):
            function.restype = None


class NativeStatus(NamedTuple):
    """Whether the C forms run in this process, and why, in a sentence."""

    active: bool
    detail: str


def native_library() -> NativeLibrary | None:
    """The library, compiled and loaded at the first call; None where NumPy has to run.

    The environment decides at each call: ``ESCNET_NATIVE=0`` turns it off. Safe for threads.
    """
    return None if _is_off() else _loaded()[0]


def native_status() -> NativeStatus:
    """What :func:`native_library` gives, and why; compiles if nothing has asked for it yet."""
    if _is_off():
        return NativeStatus(active=False, detail="ESCNET_NATIVE turns it off.")
    library, detail = _loaded()
    return NativeStatus(active=library is not None, detail=detail)


def _is_off() -> bool:
    return os.environ.get("ESCNET_NATIVE", "").strip().lower() in _OFF


def _loaded() -> tuple[NativeLibrary | None, str]:
    with _LOCK:  # one thread compiles, the others wait for it
        return _load_once()


@functools.cache
def _load_once() -> tuple[NativeLibrary | None, str]:
    """The library or None, and why; nothing that happens here is worth an error."""
    from .store import LibraryStore
    from .target import library_key

    try:
        store = LibraryStore(default_cache_directory(), library_key())
        loaded: list[NativeLibrary] = []
        kept = store.find(lambda path: _loads(path, loaded))
        if kept is not None:
            return loaded[0], f"compiled before: {kept}."
        library, detail = _built(store)
    except OSError as error:  # the sources are not there, for one
        library, detail = None, f"{error}."
    if library is None:
        _log.info("Prompts and labels are computed by NumPy, not in C: %s", detail)
    return library, detail


def _loads(path: Path, into: list[NativeLibrary]) -> bool:
    """Whether a kept library could be loaded; it is added to ``into``."""
    try:
        into.append(NativeLibrary(path))
    except (OSError, AttributeError) as error:
        _log.info("The compiled library %s cannot be loaded (%s).", path, error)
        return False
    return True


def _built(store: "LibraryStore") -> tuple[NativeLibrary | None, str]:
    """The library by the compiler of this machine, or None and the reason.

    What is imported here takes longer than all the rest, and is rarely needed.
    """
    from .compiler import NotCompiledError, find_compiler

    try:
        compiler = find_compiler()
        if not store.is_writable():
            raise NotCompiledError(
                f"the compiled library cannot be kept in {store.folder}: it cannot be written, or "
                "another user can write it. Set ESCNET_CACHE to a writable folder of your own."
            )
        known = store.failure(compiler.identity)
        if known is not None:
            raise NotCompiledError(f"{known} (Found within the last day, and not tried again.)")
        from .build import build_library

        return build_library(store, compiler)
    except NotCompiledError as reason:
        return None, str(reason)
