"""Samples that are drawn once and shown in another order each epoch."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Generic, TypeVar

import numpy as np

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


class Shuffled(Generic[_T]):
    """An endless list: epoch after epoch of the items, each in an order of its own.

    Args:
        items: what is shown.
        seed: of the orders.
    """

    def __init__(self, items: Sequence[_T], seed: int) -> None:
        self._items, self._seed = items, seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __getitem__(self, index: int) -> _T:
        epoch, place = divmod(index, len(self._items))
        if epoch != self._epoch:
            rng = np.random.Generator(np.random.PCG64((self._seed, epoch)))
            self._epoch, self._order = epoch, rng.permutation(len(self._items))
        return self._items[int(self._order[place])]
