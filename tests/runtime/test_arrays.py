"""The pool of arrays: memory comes back when the last view is gone, and is bounded."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from escnet_runtime.backends.arrays import ArrayPool


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int32, np.uint8])
@pytest.mark.parametrize("shape", [(3, 4), (1,), (0, 5), ()])
def test_arrays_are_like_those_of_numpy(shape: tuple[int, ...], kind: type) -> None:
    array = ArrayPool().empty(shape, kind)
    assert (array.shape, array.dtype) == (shape, np.dtype(kind))
    assert array.flags.c_contiguous
    assert array.flags.writeable
    array[...] = 7
    np.testing.assert_array_equal(array, np.full(shape, 7, kind))


def test_memory_comes_back_when_the_last_view_is_gone() -> None:
    pool = ArrayPool()
    array = pool.empty((64, 64), np.float32)
    view = array[3:].T
    view[...] = 1.0
    where = address(array)
    del array
    other = pool.empty((64, 64), np.float32)
    assert address(other) != where  # the view lives
    del view
    again = pool.empty((32, 128), np.int32)  # as many bytes
    assert address(again) == where


def test_two_arrays_never_share_memory() -> None:
    pool = ArrayPool()
    arrays = [pool.empty((100,), np.float32) for _ in range(20)]
    for number, array in enumerate(arrays):
        array[...] = number
    assert [float(array[0]) for array in arrays] == list(range(20))
    assert len({address(array) for array in arrays}) == 20


def test_what_is_idle_is_no_more_than_what_was_lent() -> None:
    pool = ArrayPool()
    for size in range(1, 200):
        pool.empty((size,), np.uint8)  # lent one at a time, and each of another size
        assert pool._idle_bytes + pool._lent_bytes <= size
    held = [pool.empty((1000,), np.uint8) for _ in range(5)]
    held.clear()
    assert pool._idle_bytes == 5000
    assert sum(size * len(idle) for size, idle in pool._idle.items()) == 5000
    kept = pool.empty((4500,), np.uint8)  # what was idle makes room for it
    assert pool._idle_bytes + pool._lent_bytes <= 5000
    del kept


def test_a_cleared_pool_holds_nothing_and_goes_on() -> None:
    pool = ArrayPool()
    lent = pool.empty((1000,), np.uint8)
    pool.empty((500,), np.uint8)
    pool.clear()
    assert pool._idle_bytes == 0
    del lent
    assert pool._lent_bytes == 0
    assert pool._idle_bytes == 1000
    again = pool.empty((1000,), np.uint8)
    assert pool._idle_bytes == 0
    del again


def test_many_threads_share_one() -> None:
    pool = ArrayPool()
    start = threading.Barrier(8)

    def work(number: int) -> bool:
        start.wait()
        fine = True
        for turn in range(300):
            array = pool.empty((1 + turn % 7, 50), np.int32)
            array[...] = number
            ring = [array]
            ring.append(ring)  # type: ignore[arg-type]  # ends in whichever thread collects
            fine &= bool((array == number).all())
        return fine

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(8)))
    gc.collect()
    assert pool._lent_bytes == 0
    assert pool._idle_bytes <= pool._most_bytes
