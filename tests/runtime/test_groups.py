"""Groups of categories: where they are cut, what they weigh, in which order they are added up."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from escnet_runtime.groups import GroupSums, category_chunks, group_weights, whole_groups


@given(st.integers(1, 3000), st.integers(1, 400), st.integers(1, 40))
def test_chunks_are_whole_groups_as_equal_as_can_be(
    categories: int, chunk: int, group: int
) -> None:
    chunks = category_chunks(categories, chunk, group)
    assert [i for part in chunks for i in range(part.start, part.stop)] == list(range(categories))
    assert all(part.start % group == 0 for part in chunks)
    most = whole_groups(chunk, group)
    assert chunk <= most < chunk + group
    assert all(1 <= part.stop - part.start <= most for part in chunks)
    groups = [-(-(part.stop - part.start) // group) for part in chunks]
    assert max(groups) - min(groups) <= 1
    assert len(chunks) == math.ceil(math.ceil(categories / group) / (most // group))


def test_weights_are_the_share_of_a_category_and_nothing_behind_the_last() -> None:
    weights = group_weights(5, 20, 4)
    assert weights.dtype == np.float32
    np.testing.assert_array_equal(weights, np.array([[0.05] * 4, [0.05, 0, 0, 0]], np.float32))


def test_groups_are_added_in_order_wherever_they_are_cut() -> None:
    """In float32, 2²⁴ + 1 + 1 is 2²⁴: another order would give 2²⁴ + 2."""
    parts = np.array([[2**24], [1], [1]], np.float32)
    for cuts in ([], [1], [2], [1, 2]):
        sums = GroupSums()
        for part in np.split(parts, cuts):
            sums.add("some_sum", part)
        np.testing.assert_array_equal(sums["some_sum"], parts[0])
    np.testing.assert_array_equal(parts.ravel(), [2**24, 1, 1])  # left as they were
