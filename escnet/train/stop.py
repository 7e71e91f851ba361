"""Being asked to stop: SIGTERM and Ctrl-C set a number, the loop reads it between two steps
and between two images of a validation."""

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final

from escnet_runtime.errors import EscNetError

__all__ = ["StopRequest", "Stopped", "ignore_stop_requests", "stop_requests"]

_LOG = logging.getLogger(__name__)
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
#: Ctrl-C under torchrun arrives twice: from the terminal, and passed on by torchrun.
_ECHO_SECONDS: Final = 2.0


class Stopped(EscNetError):
    """The run was asked to stop; its state was saved, and it can be resumed.

    Args:
        message: for people.
        number: the signal's.
        step: the steps done.
    """

    def __init__(self, message: str, *, number: int, step: int) -> None:
        super().__init__(message)
        self.number, self.step = number, step


class StopRequest:
    """``number`` is the signal that asked for it; 0: none did."""

    def __init__(self) -> None:
        self.number = 0
        self.time = 0.0


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within, the first SIGTERM or Ctrl-C only sets the request; a later one acts as before.

    In a thread other than the main one signals stay what they are: Python handles them in the main
    thread alone.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        if not request.number:
            request.number, request.time = number, time.monotonic()
            _LOG.warning("%s: saving before it stops", signal.Signals(number).name)
        elif time.monotonic() - request.time > _ECHO_SECONDS:
            signal.signal(number, before[number])
            signal.raise_signal(number)

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def ignore_stop_requests(_: int = 0) -> None:
    """For processes that prepare data: the one that trains ends them, after it has saved.

    A terminal sends Ctrl-C, and some supervisors SIGTERM, to every process of a run; without its
    helpers the training process could not finish the step it is in.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
