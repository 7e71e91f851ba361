"""Chunks of categories side by side: several runs of one graph at once, results in their order.

A graph's large products use every core, and much of the rest does not: ONNX Runtime moves and cuts
arrays on one. Runs of one core each waste none, as long as there are chunks enough to share.
"""

import heapq
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Final, Protocol, TypeVar, runtime_checkable

from .closing import Closing
from .processor import core_quota

__all__ = ["Lanes", "RunsSideBySide", "best_lanes", "thread_limit", "usable_cores"]

#: Each lane holds what lives inside a graph for one chunk.
_MOST: Final = 4
#: Share of a graph's time that more cores do not shorten (measured: 0.15 to 0.3).
_ALONE: Final = 0.2

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@runtime_checkable
class RunsSideBySide(Protocol):
    """A backend whose ``run`` may be called from several threads at once."""

    def lanes(self, rows: Sequence[int]) -> int:
        """How many runs at once it takes, from now on, for chunks of ``rows`` categories."""


def usable_cores() -> int:
    """Logical cores that this process may use; in a container with a CPU quota, no more of them
    than the quota pays for."""
    return min(_seen_cores(), core_quota() or _seen_cores())


def thread_limit() -> int:
    """Threads that a library has to be told, because it would take more; 0: its own choice."""
    cores = usable_cores()
    return cores if cores < _seen_cores() else 0


def _seen_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def best_lanes(rows: Sequence[int], cores: int) -> int:
    """How many lanes finish chunks of ``rows`` categories first, by an estimate; fewer if equal.

    In a lane with c cores a chunk takes its rows times ``_ALONE + (1 - _ALONE) / c``. Each chunk
    goes to the lane that is free first.
    """
    return min(
        range(1, min(_MOST, cores, len(rows)) + 1),
        key=lambda lanes: (
            _longest(rows, lanes) * (_ALONE + (1 - _ALONE) / (cores // lanes)),
            lanes,
        ),
    )


def _longest(rows: Sequence[int], lanes: int) -> int:
    """The rows of the lane that is the last to end."""
    ends = [0] * lanes
    for count in rows:
        heapq.heapreplace(ends, ends[0] + count)
    return max(ends)


class Lanes(Closing):
    """Threads for so many runs at once; a context manager that waits for those under way."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool = ThreadPoolExecutor(count, "escnet-lane") if count > 1 else None

    def close(self) -> None:
        """Wait for what is under way."""
        if self._pool is not None:
            self._pool.shutdown()

    def each(
        self, function: Callable[[_Item], _Result], items: Iterable[_Item]
    ) -> Iterator[_Result]:
        """``function(item)`` for each item, in order, computed not far ahead of the reader.

        An error is raised where its result would have come, when all runs under way have ended.
        """
        if self._pool is None:
            yield from map(function, items)
            return
        ahead: deque[Future[_Result]] = deque()
        try:
            for item in items:
                ahead.append(self._pool.submit(function, item))
                if len(ahead) > self._count:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
            wait(ahead)
