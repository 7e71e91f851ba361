"""Graphs as a library has rewritten them, on disk, so that the next process need not wait for it.

Reading a typed graph and rewriting it for the processor takes most of the time to the first mask of
a small model: all sessions of what was rewritten are there in a quarter of it (docs/cpu.md).

What TensorRT-RTX compiles on a GPU is kept here too (``escnet_runtime.gpu.runtime_cache``).

A file is called ``KEY.onnx``, whatever it holds, and ends with the sha256 of what is before it:
what is damaged is known before it is loaded. Nothing here is worth an error: a cache that cannot be
used is bypassed.
"""

import contextlib
import hashlib
import logging
import os
import platform
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from ..processor import processor_features, processor_model

__all__ = ["GraphCache"]

_FOLDER: Final = "graphs-v1"  # another layout gets another name
_SUFFIX: Final = ".onnx"
_DIGEST_BYTES: Final = 32
#: A file that is written belongs to a process; one that is this old was left by a killed one.
_ABANDONED_SECONDS: Final = 3600.0
_LOG: Final = logging.getLogger("escnet_runtime")
_Opened = TypeVar("_Opened")


class GraphCache:
    """Rewritten graphs by what they depend on. Safe for parallel threads and processes.

    Args:
        directory: the cache folder; created when first written to.
        depends: what a rewritten graph depends on besides the graph and the processor that is here:
            the library, its version and options.
        max_source_bytes: larger graphs are not kept. They hold weights above all, which gain
            nothing by it and fill the disk.
        max_bytes: when all files together are larger, those unused for longest are removed.
    """

    def __init__(
        self,
        directory: Path,
        *depends: str,
        max_source_bytes: int = 32 * 2**20,
        max_bytes: int = 512 * 2**20,
    ) -> None:
        self.folder = directory / _FOLDER
        self._depends = "\0".join(
            [*depends, platform.machine(), processor_model(), *sorted(processor_features())]
        )
        self._max_source_bytes, self._max_bytes = max_source_bytes, max_bytes

    def opened(self, graph: str, opening: Callable[[bytes], _Opened]) -> _Opened | None:
        """What ``opening`` makes of a graph that was kept; None if none was, or it is refused.

        Args:
            graph: sha256 of the graph, and whatever else of it matters.
            opening: the library's; what it refuses is forgotten.
        """
        path = self._path(graph)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        model, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
        if hashlib.sha256(model).digest() != digest:
            _LOG.info("%s is damaged; it is made anew", path)
            return None
        try:
            found = opening(model)
        except Exception as error:  # these libraries' errors share no base below Exception
            _LOG.info("%s is refused, and made anew: %s", path, error)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # used last now
        return found

    @contextmanager
    def keeping(self, graph: str, source: Path) -> Iterator[Path | None]:
        """Yield where the library shall write; kept if the block ends without error.

        None is yielded if nothing can or should be kept. A file that the library did not write is
        not kept.

        Args:
            graph: see :meth:`opened`.
            source: the graph's own file.
        """
        target = self._path(graph)
        temporary = target.with_name(f".{secrets.token_hex(8)}{_SUFFIX}")
        if not self._is_open_to(source):
            yield None
            return
        try:
            yield temporary
            self._keep(temporary, target)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _path(self, graph: str) -> Path:
        key = hashlib.sha256(f"{self._depends}\0{graph}".encode()).hexdigest()
        return self.folder / f"{key}{_SUFFIX}"

    def _is_open_to(self, source: Path) -> bool:
        try:
            if source.stat().st_size > self._max_source_bytes:
                return False
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return False
        return os.access(self.folder, os.W_OK | os.X_OK)

    def _keep(self, temporary: Path, target: Path) -> None:
        # Not forced to disk, which takes long on a card: a file that a power cut leaves damaged is
        # known by its digest.
        try:
            digest = hashlib.sha256(temporary.read_bytes()).digest()
            with temporary.open("ab") as file:
                file.write(digest)
            os.replace(temporary, target)
            self._prune(target)
        except OSError as error:
            _LOG.debug("a rewritten graph is not kept in %s: %s", self.folder, error)

    def _prune(self, newest: Path) -> None:
        now = newest.stat().st_mtime
        files = []
        for path in self.folder.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(OSError):  # another process removes some too
                about = path.stat()
                files.append((about.st_mtime, about.st_size, path))
        total = sum(size for _, size, _ in files)
        for used, size, path in sorted(files):
            abandoned = path.name.startswith(".") and now - used > _ABANDONED_SECONDS
            over = total > self._max_bytes and path != newest and not path.name.startswith(".")
            if abandoned or over:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
                    total -= size
