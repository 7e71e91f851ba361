"""Objects that must not be freed in a forked child, or ever.

Threads do not come along into a forked child. A library that waits for its own when it frees
something, as ONNX Runtime and OpenVINO do, waits there for ever.
"""

import ctypes
import os
import weakref
from typing import Any, Final

__all__ = ["never_freed", "not_freed_in_children"]

_KEPT: Final[weakref.WeakSet[Any]] = weakref.WeakSet()


def never_freed(thing: object) -> None:
    """Keep an object for as long as the process lives, its end included."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def not_freed_in_children(thing: object) -> None:
    """Keep an object that is there in a process that is forked from this one, whoever drops it."""
    _KEPT.add(thing)


def _keep_all() -> None:
    for thing in list(_KEPT):
        never_freed(thing)


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_keep_all)
