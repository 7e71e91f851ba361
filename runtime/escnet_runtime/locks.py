"""One process at a time: an exclusive lock on a file or a folder that is there.

A lock belongs to the process that took it. flock's belongs to the open file, which a forked child
shares: while it lived, the lock would outlive the process that holds it. So a child closes its
copies as soon as it is there; the parent's lock does not notice. A process that is started by
another program (spawn, torchrun) never has copies: Python's descriptors close on exec.
"""

import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

if sys.platform != "win32":
    import fcntl

__all__ = ["exclusive"]

#: EBADF, of an open file: NFS locks only what is open for writing.
_NO_LOCKS: Final = {errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS, errno.EBADF}


class _Descriptors:
    """The open descriptors of this process's locks, held or waited for.

    No fork comes between opening one and noting it, nor between closing and forgetting: the guard
    is taken around both, and around every fork. A signal's handler may fork too, in the thread that
    has the guard, so it is one that a thread can take twice.
    """

    def __init__(self) -> None:
        self._guard = threading.RLock()
        self._open: set[int] = set()
        if sys.platform != "win32":
            os.register_at_fork(
                before=self._guard.acquire,
                after_in_parent=self._guard.release,
                after_in_child=self._close_copies,
            )

    def open(self, path: Path) -> int:
        with self._guard:
            try:
                descriptor = os.open(path, os.O_RDWR)  # as NFS needs it
            except (IsADirectoryError, PermissionError):
                descriptor = os.open(path, os.O_RDONLY)
            self._open.add(descriptor)
            return descriptor

    def close(self, descriptor: int, owner: int) -> None:
        """Close one that process ``owner`` opened; a copy of it is closed already."""
        with self._guard:
            if owner == os.getpid():
                self._open.remove(descriptor)
                os.close(descriptor)

    def _close_copies(self) -> None:
        for descriptor in self._open:
            with suppress(OSError):  # whoever closes all descriptors has closed these
                os.close(descriptor)
        self._open.clear()
        self._guard.release()


_DESCRIPTORS: Final = _Descriptors()


@contextmanager
def exclusive(path: Path, *, waiting: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold the lock of ``path``; nothing is left behind, and a process that dies lets go.

    Processes that are forked meanwhile do not hold it.

    Args:
        path: an existing file or folder.
        waiting: called once if another process holds the lock, which is then waited for; without
            it that is an error.

    Yields:
        Whether the lock is held: some network file systems have none, nor has Windows here.

    Raises:
        BlockingIOError: another process holds it.
        OSError: ``path`` cannot be opened.
    """
    if sys.platform == "win32":
        yield False
        return
    descriptor, owner = _DESCRIPTORS.open(path), os.getpid()
    try:
        yield _taken(descriptor, waiting)
    finally:
        _DESCRIPTORS.close(descriptor, owner)


def _taken(descriptor: int, waiting: Callable[[], None] | None) -> bool:
    if sys.platform == "win32":
        return False
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is None:
                raise
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True
