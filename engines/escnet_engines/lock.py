"""One build of a bundle at a time."""

import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

if sys.platform != "win32":
    import fcntl

__all__ = ["only_build"]

_LOG = logging.getLogger("escnet_engines")
_NO_LOCKS: Final = {errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS}


@contextmanager
def only_build(root: Path) -> Iterator[None]:
    """Hold the lock of the bundle at ``root``; while another process holds it, say so and wait.

    The lock is on the folder itself, so nothing is left behind, and a process that dies lets go.
    """
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _LOG.warning("waiting: another process is building engines of %s", root)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _LOG.warning("the file system of %s has no locks: do not build there twice", root)
        yield
    finally:
        os.close(descriptor)
