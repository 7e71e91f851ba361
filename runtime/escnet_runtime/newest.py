"""Keeps only the newest of items that come faster than they are used."""

import threading
from collections import deque
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

__all__ = ["Newest"]

_Item = TypeVar("_Item")
#: Waiting in pieces: on Windows a signal is looked at only between them.
_PIECE_SECONDS: Final = 0.5


class Newest(Iterator[_Item], Generic[_Item]):
    """The newest item of a source that does not wait, each time one is asked for.

    A thread reads on meanwhile, so that what is used is never older than the time that using the
    one before took. An error of the source, and its end, come behind the last item.

    Args:
        source: read in a thread of its own from now on, and by nobody else.

    Attributes:
        left_out: items that nobody asked for in time.
    """

    def __init__(self, source: Iterator[_Item]) -> None:
        self.left_out = 0
        self._source = source
        self._changed = threading.Condition()
        self._newest: deque[_Item] = deque(maxlen=1)
        self._end: Exception | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._read, name="newest frame", daemon=True)
        self._thread.start()

    def __next__(self) -> _Item:
        with self._changed:
            while not self._newest and self._end is None:
                self._changed.wait(_PIECE_SECONDS)
            if self._newest:
                return self._newest.popleft()
            assert self._end is not None
            raise self._end

    def close(self, seconds: float) -> bool:
        """Stop reading; False if the source has given nothing for so long that it is still read."""
        with self._changed:
            self._closed = True
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _read(self) -> None:
        end: Exception = StopIteration()
        try:
            for item in self._source:
                with self._changed:
                    if self._closed:
                        return
                    self.left_out += len(self._newest)
                    self._newest.append(item)
                    self._changed.notify()
        except Exception as error:
            end = error
        with self._changed:
            self._end = end
            self._changed.notify()
