"""What a forked child makes of something."""

import os
import signal
import time
import warnings
from collections.abc import Callable


def exit_status_of_a_child(action: Callable[[], None], *, seconds: float = 10.0) -> int:
    """Of a child that is forked now, does it and leaves: 0, or that of a failure.

    One that does not end by itself is killed: -9.
    """
    with warnings.catch_warnings():
        # Python 3.12 warns of locks that other threads may hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
