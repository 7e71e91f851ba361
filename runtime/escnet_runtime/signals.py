"""Signals that end a command, as exceptions, so that context managers clean up."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

__all__ = ["TERMINATED", "Interrupted", "Terminated", "signals_raise"]

#: Exit code of a command that SIGTERM has ended.
TERMINATED: Final = 143
_AGAIN_SECONDS: Final = 0.05


class Interrupted(KeyboardInterrupt):
    """Ctrl-C. CPython ends a process by SIGINT, whatever its exit code, once a KeyboardInterrupt of
    exactly that type has left a string that it ran (``exec``, as code generators use it)."""


class Terminated(SystemExit):
    """SIGTERM."""


@contextmanager
def signals_raise() -> Iterator[None]:
    """SIGTERM raises SystemExit and Ctrl-C KeyboardInterrupt, so that context managers clean up.

    A second SIGTERM kills. Where Ctrl-C is ignored or another's (``nohup``, a program that calls
    us), it stays so. What is raised while an object is being freed is lost to Python, which only
    reports it: then the signal is sent once more.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python sets signal handlers in the main thread alone
        return

    def leave(number: int, _: object) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        raise Terminated(TERMINATED)

    def interrupt(_: int, __: object) -> NoReturn:
        raise Interrupted

    reported = sys.unraisablehook
    again: list[threading.Timer] = []

    def report(lost: "sys.UnraisableHookArgs") -> None:
        match lost.exc_value:
            case Terminated():
                signal.signal(signal.SIGTERM, leave)
                again.append(_sent_later(signal.SIGTERM))
            case Interrupted():
                again.append(_sent_later(signal.SIGINT))
            case _:
                reported(lost)

    sys.unraisablehook = report
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, leave)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        sys.unraisablehook = reported
        for timer in again:
            timer.cancel()
        for each, handler in before.items():
            signal.signal(each, handler)


def _sent_later(number: signal.Signals) -> threading.Timer:
    """A signal to this process, once what is being freed is gone."""
    timer = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()
    return timer
