"""Sketches tell how far apart two tensors are without either being there."""

import numpy as np
import numpy.typing as npt
import pytest

from escnet_runtime.sketch import BUCKETS, relative_l2, sketch, sketch_distance

#: From a splitmix64 written out with Python's integers, for the numbers 1 to 1000.
FIRST_BUCKETS = [888.0, -789.0, -172.0, 16.0, 109.0, 1106.0]
SUM_OF_BUCKETS = 5928.0


def noise(shape: tuple[int, ...], seed: int = 0) -> npt.NDArray[np.float64]:
    """Normal numbers."""
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)


@pytest.mark.parametrize("size", [1e-5, 1e-3, 0.1, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_distance_of_sketches_estimates_that_of_tensors(size: float, seed: int) -> None:
    tensor = noise((3, 50, 70), seed)
    other = tensor + size * noise(tensor.shape, seed + 100)
    exact = relative_l2(other, tensor)
    assert exact == pytest.approx(size, rel=0.05)
    assert sketch_distance(sketch(other), sketch(tensor)) == pytest.approx(exact, rel=0.4)


@pytest.mark.parametrize("position", [0, 17, 9999])
def test_one_wrong_element_shows(position: int) -> None:
    tensor = noise((10000,))
    other = tensor.copy()
    other[position] += 50
    assert sketch_distance(sketch(other), sketch(tensor)) > 0.3


def test_order_matters() -> None:
    tensor = noise((100, 100))
    assert sketch_distance(sketch(tensor.T.copy()), sketch(tensor)) > 0.5


def test_a_sketch_is_linear() -> None:
    x, y = noise((40, 40), 1), noise((40, 40), 2)
    np.testing.assert_allclose(sketch(2 * x + y), 2 * sketch(x) + sketch(y), atol=1e-12)


def test_a_sketch_is_the_same_on_every_machine() -> None:
    """Bundles hold sketches: these numbers are part of the format."""
    made = sketch(np.arange(1, 1001, dtype=np.float32))
    assert made.shape == (BUCKETS,) == (256,)
    assert made.dtype == np.float64
    assert made[:6].tolist() == FIRST_BUCKETS
    assert made.sum() == SUM_OF_BUCKETS


def test_the_layout_in_memory_does_not_matter() -> None:
    tensor = noise((8, 6)).astype(np.float16)
    np.testing.assert_array_equal(sketch(np.asfortranarray(tensor)), sketch(tensor))
    np.testing.assert_array_equal(sketch(tensor.ravel()), sketch(tensor))
    np.testing.assert_array_equal(sketch(tensor.astype(np.float64)), sketch(tensor))


def test_a_sketch_of_nothing_is_zero() -> None:
    assert not sketch(np.zeros((0, 3))).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_infinitely_far(bad: float) -> None:
    tensor = noise((50,))
    other = tensor.copy()
    other[7] = bad
    assert relative_l2(other, tensor) == np.inf
    assert relative_l2(tensor, other) == np.inf
    assert sketch_distance(sketch(other), sketch(tensor)) == np.inf


def test_the_relative_distance() -> None:
    assert relative_l2(np.array([3.0, 4.0]), np.array([3.0, 4.0])) == 0
    assert relative_l2(np.array([0.0, 0.0]), np.array([3.0, 4.0])) == 1
    assert relative_l2(np.array([3, 4], np.float16), np.array([0, 4], np.int32)) == 0.75
    assert relative_l2(np.zeros(2), np.zeros(2)) == 0
    assert relative_l2(np.ones(2), np.zeros(2)) == np.inf
    assert relative_l2(np.ones(2), np.ones((2, 1))) == np.inf  # no broadcasting


def test_small_types_are_compared_in_double_precision() -> None:
    """Squares of these overflow in float16."""
    large = np.full(100, 60000, np.float16)
    assert relative_l2(large, large) == 0
    assert relative_l2(large / np.float16(2), large) == pytest.approx(0.5)
