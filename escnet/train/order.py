"""The order in which samples are shown: another one each epoch, without an end."""

from typing import Generic, Protocol, TypeVar

import numpy as np

__all__ = ["Indexed", "Shuffled"]

_T_co = TypeVar("_T_co", covariant=True)


class Indexed(Protocol[_T_co]):
    """Items by number, from 0 to the length."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> _T_co: ...


class Shuffled(Generic[_T_co]):
    """An endless list: epoch after epoch of the items, each in an order of its own.

    Args:
        items: what is shown.
        seed: of the orders.
    """

    def __init__(self, items: Indexed[_T_co], seed: int) -> None:
        self._items, self._seed = items, seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __getitem__(self, index: int) -> _T_co:
        epoch, place = divmod(index, len(self._items))
        if epoch != self._epoch:
            rng = np.random.Generator(np.random.PCG64((self._seed, epoch)))
            self._epoch, self._order = epoch, rng.permutation(len(self._items))
        return self._items[int(self._order[place])]
