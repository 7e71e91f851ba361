"""Text embeddings on disk, so that a category is encoded once on a machine and not once a run."""

import contextlib
import logging
import os
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import platformdirs
from numpy.typing import NDArray

__all__ = ["EmbeddingCache", "default_cache_directory"]

_FILE = "embeddings-v1.sqlite"  # another layout gets another name
_BUSY_SECONDS = 10.0
_ROWS_A_STATEMENT = 500  # SQLite takes 999 parameters at least
_CODE_MASK = 0xFF  # extended result codes carry more above the primary one
#: sqlite3.h's SQLITE_CORRUPT and SQLITE_NOTADB, and what SQLite says with them: Python 3.10 has
#: neither the names nor an error's code.
_DAMAGED: Final = {11: "malformed", 26: "not a database"}
_SCHEMA = """
CREATE TABLE IF NOT EXISTS embeddings (
    id INTEGER PRIMARY KEY,
    model TEXT NOT NULL,
    text TEXT NOT NULL,
    vector BLOB NOT NULL,
    checksum INTEGER NOT NULL,
    UNIQUE (model, text)
)
"""
_log = logging.getLogger(__name__)


def default_cache_directory() -> Path:
    """``$ESCNET_CACHE`` if set, otherwise the user's cache folder of this system."""
    return Path(os.environ.get("ESCNET_CACHE") or platformdirs.user_cache_dir("escnet"))


class EmbeddingCache:
    """Unit-norm float32 embeddings by model and exact cleaned text, in one SQLite file.

    Safe for threads and for processes that run at the same time. Nothing here is worth an error: a
    cache that cannot be used is reported once by a warning and then bypassed, a damaged one is set
    aside as ``NAME.damaged`` and begun anew. When the file would grow beyond ``max_bytes``, the
    entries written first are dropped, a quarter of all at a time.
    """

    def __init__(
        self, directory: Path | None, model_key: str, *, max_bytes: int = 512 * 2**20
    ) -> None:
        """Use the cache in ``directory`` (None: `default_cache_directory`).

        Args:
            directory: created when first written to.
            model_key: what the embeddings depend on besides the text, such as a hash of the text
                encoder and the tokenizer.
            max_bytes: bound of the file's size, in bytes; it may be passed by 500 entries.
        """
        self.path = (directory or default_cache_directory()) / _FILE
        self._model_key = model_key
        self._max_bytes = max_bytes
        self._bypassed = False

    def get_many(self, texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Look texts up: text -> float32 [D]. Texts that are not stored are not in the result."""
        found: dict[str, NDArray[np.float32]] = {}
        wanted = list(dict.fromkeys(texts))
        with self._guarded():
            if self._bypassed or not wanted or not self.path.exists():
                return found
            with closing(self._connect()) as connection:
                for begin in range(0, len(wanted), _ROWS_A_STATEMENT):
                    part = wanted[begin : begin + _ROWS_A_STATEMENT]
                    found.update(self._get(connection, part))
        return found

    def put_many(self, embeddings: Mapping[str, NDArray[np.float32]]) -> None:
        """Store text -> float32 [D], unit norm; an entry that exists is replaced."""
        rows = [
            (self._model_key, text, blob, _checksum(text, blob))
            for text, blob in (
                (text, np.asarray(vector).astype("<f4").tobytes())
                for text, vector in embeddings.items()
            )
        ]
        with self._guarded():
            if self._bypassed or not rows:
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._connect()) as connection:
                for begin in range(0, len(rows), _ROWS_A_STATEMENT):
                    self._put(connection, rows[begin : begin + _ROWS_A_STATEMENT])

    def _get(
        self, connection: sqlite3.Connection, texts: list[str]
    ) -> Iterator[tuple[str, NDArray[np.float32]]]:
        marks = ",".join("?" * len(texts))
        rows = connection.execute(
            f"SELECT text, vector, checksum FROM embeddings WHERE model = ? AND text IN ({marks})",
            (self._model_key, *texts),
        )
        for text, blob, checksum in rows:
            # SQLite does not notice a flipped bit in a row; such a row counts as not stored. So
            # does what a text encoder once got wrong: it would be wrong on every later run too.
            if isinstance(blob, bytes) and _checksum(text, blob) == checksum:
                vector = np.frombuffer(blob, dtype="<f4").astype(np.float32)
                if np.isfinite(vector).all():
                    yield text, vector

    def _put(self, connection: sqlite3.Connection, rows: list[tuple[str, str, bytes, int]]) -> None:
        # IMMEDIATE, because a read lock that becomes a write lock does not wait for other writers.
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            "INSERT OR REPLACE INTO embeddings (model, text, vector, checksum) VALUES (?, ?, ?, ?)",
            rows,
        )
        while _used_bytes(connection) > self._max_bytes:
            # Ids grow with every write. The file keeps its size; its free pages are used again.
            connection.execute(
                "DELETE FROM embeddings WHERE id <= (SELECT id FROM embeddings ORDER BY id "
                "LIMIT 1 OFFSET (SELECT COUNT(*) / 4 FROM embeddings))"
            )
            if connection.execute("SELECT NOT EXISTS (SELECT 1 FROM embeddings)").fetchone()[0]:
                break  # an empty file has a size too
        connection.execute("COMMIT")

    def _connect(self) -> sqlite3.Connection:
        # A connection for each call: they must not be shared between threads nor survive a fork.
        connection = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            with contextlib.suppress(sqlite3.OperationalError):
                # Readers and a writer then do not wait for each other. Some file systems lack it,
                # and another process may be switching to it at this moment.
                connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(_SCHEMA)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turn any failure of the cache into one warning, and a damaged file into a new one."""
        opened = _identity(self.path)
        try:
            yield
        except sqlite3.Error as error:
            if _is_damage(error):
                self._set_aside(opened, error)
            else:
                self._bypass(error)
        except OSError as error:
            self._bypass(error)

    def _bypass(self, error: Exception) -> None:
        if not self._bypassed:
            _log.warning(
                "The embedding cache %s cannot be used (%s); texts are encoded without it. "
                "Set ESCNET_CACHE to a writable folder.",
                self.path,
                error,
            )
        self._bypassed = True

    def _set_aside(self, opened: tuple[int, int] | None, error: Exception) -> None:
        if _identity(self.path) != opened:
            return  # another process has replaced it already
        damaged = self.path.with_name(f"{_FILE}.damaged")
        _log.warning(
            "The embedding cache %s is damaged (%s); it is set aside as %s and begun anew.",
            self.path,
            error,
            damaged.name,
        )
        try:
            for suffix in ("-wal", "-shm"):  # they belong to the damaged file
                self.path.with_name(_FILE + suffix).unlink(missing_ok=True)
            os.replace(self.path, damaged)
        except FileNotFoundError:
            return  # another process was faster
        except OSError as failure:
            self._bypass(failure)


def _used_bytes(connection: sqlite3.Connection) -> int:
    pages, free, size = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


def _checksum(text: str, blob: bytes) -> int:
    return zlib.crc32(blob, zlib.crc32(text.encode()))


def _is_damage(error: sqlite3.Error) -> bool:
    code: int | None = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return any(said in str(error) for said in _DAMAGED.values())
    return code & _CODE_MASK in _DAMAGED


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode: tells whether a file at a path is still the same file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
