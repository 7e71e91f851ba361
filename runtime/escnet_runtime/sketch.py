"""A short fingerprint of a tensor from which the relative difference of two tensors can be read.

A count sketch (Charikar, Chen, Farach-Colton 2002): every element is added, with a pseudo-random
sign, to one of 256 pseudo-random buckets. Sketching is linear and keeps the Euclidean norm in
expectation, with a spread of about 9 % at this size, so the distance of two sketches estimates that
of two tensors: a device can be compared with a reference that it never gets to see.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["BUCKETS", "relative_l2", "sketch", "sketch_distance"]

BUCKETS = 256

_Doubles = npt.NDArray[np.float64]


def sketch(tensor: npt.NDArray[np.generic]) -> _Doubles:
    """float64 [256] of a tensor of any shape, in its C order."""
    values = np.asarray(tensor, np.float64).ravel()
    hashed = _splitmix(np.arange(values.size, dtype=np.uint64))
    buckets = (hashed & np.uint64(BUCKETS - 1)).astype(np.int64)
    signs = np.where(hashed >> np.uint64(63), -1.0, 1.0)
    sums: _Doubles = np.bincount(buckets, weights=signs * values, minlength=BUCKETS).astype(
        np.float64
    )
    return sums


def sketch_distance(got: npt.ArrayLike, want: npt.ArrayLike) -> float:
    """An estimate of ‖x - y‖₂ / ‖y‖₂ from the sketches of x and y; infinite if not finite."""
    return relative_l2(np.asarray(got), np.asarray(want))


def relative_l2(got: npt.NDArray[np.generic], want: npt.NDArray[np.generic]) -> float:
    """‖got - want‖₂ / ‖want‖₂ in float64; infinite if either is not finite or shapes differ.

    Where ``want`` is all zero: 0 if ``got`` is too, else infinite.
    """
    x, y = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if x.shape != y.shape or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return float("inf")
    distance, norm = float(np.linalg.norm(x - y)), float(np.linalg.norm(y))
    if norm == 0.0:
        return 0.0 if distance == 0.0 else float("inf")
    return distance / norm


def _splitmix(index: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64's output function (Steele, Lea, Flood 2014), the same on every machine."""
    with np.errstate(over="ignore"):
        z = index + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: npt.NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed
