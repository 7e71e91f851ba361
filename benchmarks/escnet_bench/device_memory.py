"""What a piece of work takes of the GPU's memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from escnet_runtime.device import open_device

__all__ = ["watched_memory"]


@contextmanager
def watched_memory() -> Iterator[Callable[[], int]]:
    """Give a function: bytes of the device that are taken since the block began.

    The driver's own context is not among them; other processes on the GPU are.
    """
    with open_device() as device:
        free = device.memory()[0]
        yield lambda: free - device.memory()[0]
