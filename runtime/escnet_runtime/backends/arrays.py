"""Arrays that are used again and again, so that the operating system sees none come or go.

What a graph gives lives until the graphs behind it have read it, and the next image asks for the
same sizes again. Left to the C library, large ones go back to the system in between, and each page
of the next one is a fault that the kernel answers with zeros.
"""

import math
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ArrayPool"]

_Memory = npt.NDArray[np.uint8]


class ArrayPool:
    """Gives arrays, and takes their memory back when the last view of them is gone.

    What lies idle is never more than what was lent at once at the most, in bytes, so a pool at rest
    holds as much as one at work. Safe for threads.
    """

    def __init__(self) -> None:
        # An array may end in any thread and at any line, also within a call of this pool.
        self._lock = threading.RLock()
        self._idle: OrderedDict[int, list[_Memory]] = OrderedDict()
        self._idle_bytes = self._lent_bytes = self._most_bytes = 0

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """As :func:`numpy.empty`."""
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        return np.asarray(_Loan(self, self._taken(size), shape, kind.str))

    def clear(self) -> None:
        """Let go of what is idle; what is lent now is not taken back any more than before."""
        with self._lock:
            self._idle.clear()
            self._idle_bytes, self._most_bytes = 0, self._lent_bytes

    def _taken(self, size: int) -> _Memory:
        with self._lock:
            self._lent_bytes += size
            self._most_bytes = max(self._most_bytes, self._lent_bytes)
            if idle := self._idle.get(size):
                self._idle_bytes -= size
                return idle.pop()
            self._shrink()
        return np.empty(size, np.uint8)

    def _give_back(self, memory: _Memory) -> None:
        with self._lock:
            self._lent_bytes -= memory.nbytes
            self._idle_bytes += memory.nbytes
            self._idle.setdefault(memory.nbytes, []).append(memory)
            self._idle.move_to_end(memory.nbytes)
            self._shrink()

    def _shrink(self) -> None:
        """Together no more than the most that was lent; sizes that nobody asks for go first."""
        while self._idle and self._idle_bytes + self._lent_bytes > self._most_bytes:
            size, idle = next(iter(self._idle.items()))
            if idle:
                self._idle_bytes -= size
                idle.pop()
            if not idle:
                del self._idle[size]


class _Loan:
    """Memory as an array of some shape: NumPy holds it as long as a view of the array lives."""

    def __init__(self, pool: ArrayPool, memory: _Memory, shape: tuple[int, ...], kind: str) -> None:
        self._pool, self._memory = pool, memory
        self.__array_interface__ = {
            "version": 3,
            "data": (memory.ctypes.data, False),
            "shape": shape,
            "typestr": kind,
        }

    def __del__(self) -> None:
        self._pool._give_back(self._memory)
