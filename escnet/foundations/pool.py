"""Samples that are drawn once and shown in another order each epoch."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from escnet.train.order import Shuffled
from escnet_runtime.console import Console

__all__ = ["Shuffled", "draw"]

_T = TypeVar("_T")


def draw(
    make: Callable[[int], _T], count: int, *, processes: int, console: Console, title: str
) -> list[_T]:
    """``make(0)`` to ``make(count - 1)``, made by several processes. ``make`` must be picklable."""
    found: list[_T] = []
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads
    with (
        ProcessPoolExecutor(processes, mp_context=context) as pool,
        console.progress(title, count) as advance,
    ):
        for one in pool.map(make, range(count), chunksize=64):
            found.append(one)
            advance()
    return found
