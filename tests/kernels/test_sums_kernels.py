"""Sums over categories and their weights are those of NumPy, bit for bit."""

import dataclasses
import math
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from escnet_runtime.errors import InputError
from escnet_runtime.groups import GroupSums, group_weights
from escnet_runtime.kernels import accumulate_launch, group_weights_launch
from tests.kernels.machines import Array, Guarded, Machine

Floats = npt.NDArray[np.float32]


# --- sums ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """``edges`` cut the groups of ``parts`` [g, elements] into chunks."""

    parts: Floats
    group: int
    edges: list[int]
    active: int | None
    seed: int


def run(machine: Machine, case: Case) -> Array:
    """The sums over all chunks, one launch a chunk."""
    elements = case.parts.shape[1]
    sums = Guarded(machine, np.full(elements, math.nan, np.float32))
    count = None if case.active is None else Guarded(machine, np.array([case.active], np.int32))
    for start, stop in pairwise(case.edges):
        parts = Guarded(machine, case.parts[start:stop])
        launch = accumulate_launch(
            parts.address,
            sums.address,
            (stop - start, elements),
            group=case.group,
            first_category=start * case.group,
            start=start == 0,
            active=count.address if count else 0,
        )
        machine.launch(launch, seed=case.seed)
        assert_same(parts.read(), case.parts[start:stop])
    return sums.read()


def expected(case: Case) -> Floats:
    """NumPy's sum of the groups that have a category in use."""
    used = len(case.parts) if case.active is None else math.ceil(max(case.active, 0) / case.group)
    sums = GroupSums()
    with np.errstate(all="ignore"):
        sums.add("sum", case.parts[:used])
    return sums.get("sum", np.zeros(case.parts.shape[1], np.float32))


def assert_same(got: Array, want: Array) -> None:
    """Equal bits; any NaN is as good as another."""
    assert got.dtype == want.dtype == np.float32
    numbers = ~np.isnan(want)
    np.testing.assert_array_equal(np.isnan(got), ~numbers)
    np.testing.assert_array_equal(got[numbers].view(np.uint32), want[numbers].view(np.uint32))


def drawn_parts(kind: str, shape: tuple[int, int], seed: int) -> Floats:
    random = np.random.default_rng(seed)
    if kind == "normal":
        return random.normal(0, 3, shape).astype(np.float32)
    if kind == "odd":
        values = [0.0, -0.0, 1.0, 2.0**24, -(2.0**24), 1e-42, 3e38, math.inf, -math.inf, math.nan]
        return random.choice(np.array(values, np.float32), shape)
    return random.integers(0, 1 << 32, shape, np.uint32).view(np.float32)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    groups, group = draw(st.integers(1, 9)), draw(st.integers(1, 20))
    shape = (groups, draw(st.sampled_from([1, 5, 256, 300])))
    kind = draw(st.sampled_from(["normal", "odd", "bits"]))
    return Case(
        parts=drawn_parts(kind, shape, draw(st.integers(0, 1 << 32))),
        group=group,
        edges=sorted({0, groups, *draw(st.lists(st.integers(0, groups), max_size=3))}),
        active=draw(st.none() | st.integers(-1, groups * group + 5)),
        seed=draw(st.integers(0, (1 << 32) - 1)),
    )


@settings(max_examples=120, database=None)
@given(case=cases())
def test_sums_are_those_of_numpy(machine: Machine, case: Case) -> None:
    assert_same(run(machine, case), expected(case))


def test_groups_are_added_in_order_wherever_they_are_cut(machine: Machine) -> None:
    """In float32, 2²⁴ + 1 + 1 is 2²⁴: another order would give 2²⁴ + 2."""
    parts = np.array([[2**24], [1], [1]], np.float32)
    for edges in ([0, 3], [0, 1, 3], [0, 2, 3], [0, 1, 2, 3]):
        case = Case(parts=parts, group=4, edges=edges, active=None, seed=0)
        assert run(machine, case).tolist() == [2**24]


def test_groups_beyond_the_active_count_are_not_added(machine: Machine) -> None:
    """Not even as zeros: what padding computes may be NaN."""
    parts = np.full((4, 3), math.nan, np.float32)
    parts[:2] = [[1, -0.0, 3], [10, -0.0, 30]]
    for active, want in [
        (0, [0, 0, 0]),
        (1, parts[0]),
        (16, parts[0]),
        (17, parts[0] + parts[1]),
        (32, parts[0] + parts[1]),
    ]:
        case = Case(parts=parts, group=16, edges=[0, 1, 4], active=active, seed=3)
        assert_same(run(machine, case), np.array(want, np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (0, 4)}, r"got sums \[0, 4\]; expected \[groups, elements\]"),
        ({"shape": (2, 1 << 31)}, "each from 1 to 2147483647"),
        ({"group": 0}, "got 2 groups of 0 categories"),
        ({"first_category": 8}, "from category 8 on; expected whole groups"),
        ({"first_category": -16}, "from category -16 on"),
        ({"first_category": 1 << 24}, "at most 16777216 categories"),
    ],
)
def test_sums_the_kernel_does_not_take_are_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "shape": (2, 4),
        "group": 16,
        "first_category": 16,
        "start": False,
    }
    with pytest.raises(InputError, match=message):
        accumulate_launch(0, 0, **{**arguments, **change})


# --- weights -------------------------------------------------------------------------------------


def run_weights(machine: Machine, categories: int, group: int, active: int | None) -> Array:
    groups = -(-categories // group)
    weights = Guarded(machine, np.full((groups, group), math.nan, np.float32))
    count = None if active is None else Guarded(machine, np.array([active], np.int32))
    launch = group_weights_launch(
        weights.address, categories=categories, group=group, active=count.address if count else 0
    )
    machine.launch(launch, seed=active or 0)
    return weights.read()


@settings(max_examples=100, database=None)
@given(
    categories=st.integers(1, 700),
    group=st.integers(1, 20),
    active=st.none() | st.integers(1, 800),
)
def test_weights_are_those_of_numpy(
    machine: Machine, categories: int, group: int, active: int | None
) -> None:
    used = categories if active is None else min(active, categories)
    want = np.zeros((-(-categories // group), group), np.float32)
    filled = group_weights(used, used, group)
    want[: len(filled)] = filled
    assert_same(run_weights(machine, categories, group, active), want)


@pytest.mark.parametrize("active", [1, 37, 48, 96])
def test_weights_of_chunks_lie_where_they_are_asked_for(machine: Machine, active: int) -> None:
    """As many floats apart as it takes to begin at an aligned place; nothing between is written."""
    weights = Guarded(machine, np.full((2, 64), 7, np.float32))
    count = Guarded(machine, np.array([active], np.int32))
    machine.launch(
        group_weights_launch(
            weights.address, categories=96, group=16, active=count.address, parts=(48, 64)
        )
    )
    want = run_weights(machine, 96, 16, active).reshape(2, 48)
    got = weights.read()
    assert_same(got[:, :48], want)
    assert (got[:, 48:] == 7).all()


def test_parts_of_weights_that_are_none_are_refused() -> None:
    for parts in ((0, 64), (16, -1), (16, 1 << 31)):
        with pytest.raises(InputError, match="expected at least one"):
            group_weights_launch(0, categories=96, group=16, parts=parts)


def test_no_category_in_use_weighs_nothing(machine: Machine) -> None:
    for active in (0, -1):
        assert not run_weights(machine, 19, 16, active).any()


def test_the_share_of_any_number_is_rounded_as_numpy_does() -> None:
    """Why one float32 division in the kernel is enough, at every number of labels."""
    numbers = np.arange(1, 65537)
    once = np.float32(1) / numbers.astype(np.float32)
    assert once.dtype == np.float32
    np.testing.assert_array_equal(once, (1.0 / numbers).astype(np.float32))


@pytest.mark.parametrize(("categories", "group"), [(0, 16), (19, 0), ((1 << 24) + 1, 16)])
def test_weights_the_kernel_does_not_write_are_refused(categories: int, group: int) -> None:
    with pytest.raises(InputError, match=f"got {categories} categories in groups of {group}"):
        group_weights_launch(0, categories=categories, group=group)
