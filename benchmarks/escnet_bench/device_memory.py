"""Measures how much GPU memory a piece of work takes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from escnet_runtime.device import open_device

__all__ = ["watched_memory"]


@contextmanager
def watched_memory() -> Iterator[Callable[[], int]]:
    """Give a function that returns by how many bytes used device memory has grown since the start.

    The driver's context is not counted; other processes on the GPU are.
    """
    with open_device() as device:
        free = device.memory()[0]
        yield lambda: free - device.memory()[0]
