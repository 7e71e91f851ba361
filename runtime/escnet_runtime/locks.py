"""One process at a time: an exclusive lock on a file or a folder that is there."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

if sys.platform != "win32":
    import fcntl

__all__ = ["exclusive"]

_NO_LOCKS: Final = {errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS}


@contextmanager
def exclusive(path: Path, *, waiting: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold the lock of ``path``; nothing is left behind, and a process that dies lets go.

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
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield _taken(descriptor, waiting)
    finally:
        os.close(descriptor)


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
