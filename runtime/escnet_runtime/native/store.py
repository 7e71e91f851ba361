"""Where compiled libraries are kept: the user's cache folder, one file for each key.

A file is called ``KEY-DIGEST.so``, the digest being that of its content: what is damaged is known
before it is loaded, and a file appears whole under a name that fits it. ``KEY-COMPILER.failed``
says why a compiler made none, so that the next process does not ask it again for a day. It is dated
back where that is to hold for less.
"""

import contextlib
import hashlib
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ..atomic import atomic_file
from ..errors import InputError

__all__ = ["LibraryStore"]

_FOLDER: Final = "native-v1"  # another layout gets another name
_KEY_DIGITS: Final = 32  # enough to tell keys apart
_FAILURE_SECONDS: Final = 24 * 3600.0
_log = logging.getLogger(__name__)


class LibraryStore:
    """The libraries of one key. Safe for parallel processes."""

    def __init__(self, directory: Path, key: str) -> None:
        """A store in the cache folder ``directory``, which is created at the first write."""
        self.folder = directory / _FOLDER
        self._key = key[:_KEY_DIGITS]

    def find(self, usable: Callable[[Path], bool] = lambda path: True) -> Path | None:
        """The first library whose content is what was written and that is ``usable``, or None.

        Of one key there may be several: machines that share the folder may have other C libraries.
        """
        try:
            names = sorted(os.listdir(self.folder))
        except OSError:
            return None
        if not self._is_safe():
            return None
        for name in names:
            key, _, rest = name.partition("-")
            if key == self._key and rest.endswith(".so"):
                path = self.folder / name
                digest = rest.removesuffix(".so")
                if _is_own(path) and _is_whole(path, digest) and usable(path):
                    return path
        return None

    def is_writable(self) -> bool:
        """Whether a library could be kept, out of reach of other users; creates the folder."""
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(mode=0o755, exist_ok=True)
        except OSError:
            return False
        return os.access(self.folder, os.W_OK | os.X_OK) and self._is_safe()

    def _is_safe(self) -> bool:
        """Whether no other user could put a file in the place of one after it was looked at."""
        return _is_own(self.folder) and _is_own(self.folder.parent, shared=True)

    @contextmanager
    def keeping(self, code: bytes) -> Iterator[Path]:
        """Yield a file with a library's content, which is kept if the block ends without error.

        Raises InputError or OSError if it cannot be written.
        """
        name = f"{self._key}-{hashlib.sha256(code).hexdigest()}.so"
        with atomic_file(self.folder / name) as temporary:
            temporary.write_bytes(code)
            yield temporary

    def failure(self, compiler: str) -> str | None:
        """Why this compiler made no library within the last day, if it did not."""
        path = self._failure(compiler)
        try:
            age = time.time() - path.stat().st_mtime
            return path.read_text(encoding="utf-8") if 0 <= age < _FAILURE_SECONDS else None
        except (OSError, UnicodeDecodeError):
            return None

    def note_failure(
        self, compiler: str, reason: str, *, seconds: float = _FAILURE_SECONDS
    ) -> None:
        """Remember for a time why a compiler made none; where that cannot be kept, it is not."""
        with (
            contextlib.suppress(InputError, OSError),
            atomic_file(self._failure(compiler)) as temporary,
        ):
            temporary.write_text(reason, encoding="utf-8")
            date = time.time() - (_FAILURE_SECONDS - seconds)
            os.utime(temporary, (date, date))

    def _failure(self, compiler: str) -> Path:
        digest = hashlib.sha256(compiler.encode(errors="surrogateescape")).hexdigest()
        return self.folder / f"{self._key}-{digest[:16]}.failed"


def _is_own(path: Path, *, shared: bool = False) -> bool:
    """Whether a file or folder belongs to this user or root and, unless it may be ``shared``, only
    they can write it (in a sticky folder such as /tmp: others cannot touch what is in it)."""
    if not hasattr(os, "getuid"):
        return True
    try:
        about = path.stat()
    except OSError:
        return False
    sticky = stat.S_ISDIR(about.st_mode) and about.st_mode & stat.S_ISVTX
    closed = shared or sticky or not about.st_mode & stat.S_IWOTH
    if about.st_uid in {os.getuid(), 0} and closed:
        return True
    _log.info("No compiled library is loaded from %s: another user can write it.", path)
    return False


def _is_whole(path: Path, digest: str) -> bool:
    try:
        content = path.read_bytes()
    except OSError as error:
        _log.info("The compiled library %s cannot be read (%s).", path, error)
        return False
    if hashlib.sha256(content).hexdigest() == digest:
        return True
    _log.info("The compiled library %s is damaged; it is compiled anew.", path)
    return False
