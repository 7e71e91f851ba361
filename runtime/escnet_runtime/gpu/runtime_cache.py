"""What TensorRT-RTX compiles on the device, on disk, so that the next process need not wait for it.

Its engines are finished where they run: kernels are compiled for the GPU, the driver and the shapes
that a context gets. The library checks what it is given back against all of these, and refuses what
is not of here.
"""

import contextlib
import hashlib
import logging
import sys
from pathlib import Path
from typing import Any

from ..backends.graph_cache import GraphCache
from ..engine_record import EngineRecord
from ..errors import BackendError
from ..forks import not_freed_in_children

__all__ = ["RuntimeCache"]

_LOG = logging.getLogger("escnet_runtime")


class RuntimeCache:
    """One cache of the library's, for all engines of a bundle. Nothing here is worth an error.

    Call everything with the device current.

    Args:
        folder: the cache folder.
        record: of the engines.
        gpu: the device's name.
    """

    def __init__(self, folder: Path, record: EngineRecord, gpu: str) -> None:
        shown = record.fingerprint
        self._store = GraphCache(
            folder, shown.backend, shown.version, gpu, max_source_bytes=sys.maxsize
        )
        self._key = "\0".join(engine.sha256 for engine in record.engines.values())
        self._cache: Any = None
        self._works = True
        self._known = b""  # digest of what lies on disk

    def give(self, config: Any) -> None:
        """Let the contexts of a runtime configuration, TensorRT-RTX's, read and fill it."""
        if not self._works:
            return
        try:
            if self._cache is None:
                self._cache = self._opened(config.create_runtime_cache())
            if not config.set_runtime_cache(self._cache):
                raise BackendError("it is refused")
        except Exception as error:  # the bindings' errors share no base below Exception
            _LOG.info("TensorRT-RTX's runtime cache does not work (%s): kernels are new", error)
            self._works, self._cache = False, None

    def _opened(self, cache: Any) -> Any:
        not_freed_in_children(cache)

        def read(content: bytes) -> bytes:
            if not cache.deserialize(content):
                raise BackendError("it is of another GPU, driver or version")
            return hashlib.sha256(content).digest()

        self._known = self._store.opened(self._key, read) or b""
        return cache

    def keep(self, source: Path) -> None:
        """Write what was compiled since it was read.

        Args:
            source: a file of the engines.
        """
        if self._cache is None:
            return
        try:
            content = bytes(self._cache.serialize())
        except Exception as error:  # as above
            _LOG.info("what TensorRT-RTX compiled is not kept: %s", error)
            return
        digest = hashlib.sha256(content).digest()
        if digest == self._known:
            return
        with contextlib.suppress(OSError), self._store.keeping(self._key, source) as path:
            if path is not None:
                path.write_bytes(content)
                self._known = digest

    def close(self) -> None:
        """Free the library's part, after all contexts."""
        self._cache = None
