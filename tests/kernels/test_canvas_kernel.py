"""The kernel that joins the logits of windows gives the canvas of the CPU path, bit for bit."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from escnet_runtime.errors import InputError
from escnet_runtime.kernels import FloatType, canvas_launch
from escnet_runtime.windows import LogitCanvas, WindowPlan, plan_windows
from tests.kernels.machines import FLOAT_TYPES, Array, Guarded, Machine, stored

Floats = npt.NDArray[np.float32]
CROPS = 5


def run(
    machine: Machine,
    raw: list[Array],
    plan: WindowPlan,
    chunk: int,
    *,
    float_type: FloatType = "float32",
    active: int | None = None,
    seed: int = 0,
) -> Array:
    """The canvas of crops of logits [n,l,l] as they lie in memory."""
    count = len(raw[0])
    side = plan.canvas_cells
    in_use = None if active is None else Guarded(machine, np.array([active], np.int32))
    canvas = Guarded(machine, np.full((count, side, side), math.nan, np.float32))
    for crop, logits in enumerate(raw):
        for first in range(0, count, chunk):
            part = logits[first : first + chunk]
            given = Guarded(machine, part)  # kept: nothing else holds its memory for the launch
            launch = canvas_launch(
                given.address,
                canvas.address + 4 * first * side * side,
                plan,
                crop,
                categories=len(part),
                first_category=first,
                logit_type=float_type,
                active=in_use.address if in_use else 0,
            )
            machine.launch(launch, seed=seed)
    return canvas.read()


def expected(values: list[Floats], plan: WindowPlan) -> Floats:
    """The CPU path."""
    canvas = LogitCanvas(plan, len(values[0]))
    everything = slice(0, len(values[0]))
    with np.errstate(invalid="ignore", over="ignore"):
        for crop, logits in enumerate(values):
            canvas.add(crop, everything, logits)
    return canvas.chunk(everything)


def drawn(kind: str, count: int, cells: int, seed: int) -> list[Floats]:
    random = np.random.default_rng(seed)
    shape = (CROPS, count, cells, cells)
    if kind == "odd":
        odd = np.array([0.0, -0.0, 1.0, math.nan, math.inf, -math.inf, 3e38, 1e-42], np.float32)
        return list(random.choice(odd, shape))
    return list(random.normal(0, 3, shape).astype(np.float32))


def assert_same(got: Array, want: Array) -> None:
    """Bit for bit, but a NaN is any NaN."""
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    numbers = ~np.isnan(want)
    np.testing.assert_array_equal(got[numbers].view(np.uint32), want[numbers].view(np.uint32))


@settings(max_examples=60, database=None)
@given(
    kind=st.sampled_from(["smooth", "odd"]),
    count=st.integers(1, 7),
    cells=st.integers(2, 13),
    chunk=st.integers(1, 7),
    float_type=st.sampled_from(FLOAT_TYPES),
    seed=st.integers(0, (1 << 32) - 1),
)
def test_the_canvas_is_that_of_the_cpu_path(
    machine: Machine,
    kind: str,
    count: int,
    cells: int,
    chunk: int,
    float_type: FloatType,
    seed: int,
) -> None:
    plan = plan_windows(cells, cells)
    pairs = [stored(one, float_type) for one in drawn(kind, count, cells, seed)]
    got = run(machine, [raw for raw, _ in pairs], plan, chunk, float_type=float_type, seed=seed)
    assert_same(got, expected([values for _, values in pairs], plan))


def test_the_grid_of_the_presets(machine: Machine) -> None:
    plan = plan_windows(384, 96)
    logits = drawn("smooth", 3, 96, 1)
    assert_same(run(machine, logits, plan, 2), expected(logits, plan))


def test_categories_beyond_the_active_count_are_left_as_they_are(machine: Machine) -> None:
    plan = plan_windows(6, 6)
    logits = drawn("smooth", 10, 6, 2)
    want = expected(logits, plan)
    for active in (1, 4, 5, 10, 50):
        got = run(machine, logits, plan, 4, active=active)
        assert_same(got[:active], want[:active])
        assert np.isnan(got[active:]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": 5}, "got crop 5; expected 0 to 4"),
        ({"crop": -1}, "got crop -1"),
        ({"categories": 0}, "got 0 categories"),
        ({"first_category": -1}, "from category -1 on"),
        ({"categories": 1 << 34}, "fewer than 2\\^38"),
        ({"logit_type": "int8"}, "got type 'int8'"),
    ],
)
def test_what_the_kernel_does_not_take_is_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "plan": plan_windows(6, 6),
        "crop": 0,
        "categories": 2,
        "first_category": 0,
    }
    with pytest.raises(InputError, match=message):
        canvas_launch(0, 0, **{**arguments, **change})
