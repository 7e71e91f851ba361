"""The CUDA kernel of up-sampling and argmax gives the labels of the CPU path."""

import ctypes
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
from escnet_runtime.kernels import (
    FloatType,
    Launch,
    UpsampleBuffers,
    kernel_source,
    upsample_argmax_launch,
)
from escnet_runtime.postprocess import UpsampleArgmax
from tests.kernels.host import HostCompiler
from tests.kernels.machines import FLOAT_TYPES, Array, Guarded, HostMachine, Machine, stored

Floats = npt.NDArray[np.float32]
Chunks = list[tuple[int, int]]  # (first category, number) in the order they are given


def run(
    machine: Machine,
    raw: Array,
    size: tuple[int, int],
    chunks: Chunks,
    *,
    float_type: FloatType = "float32",
    classes: int | None = None,
    active: int | None = None,
    seed: int = 0,
) -> tuple[Array, Array]:
    """Labels and confidence of logits as they lie in memory (bfloat16 as uint16)."""
    classes = classes or len(raw)
    count = None if active is None else Guarded(machine, np.array([active], np.int32))
    best = Guarded(machine, np.full(size, math.nan, np.float32))
    total = Guarded(machine, np.full(size, math.nan, np.float32))
    labels = Guarded(machine, np.full(size, 77, np.uint8 if classes <= 256 else np.uint16))
    confidence = Guarded(machine, np.full(size, math.nan, np.float16))
    for position, (first, number) in enumerate(chunks):
        logits = Guarded(machine, raw[first : first + number])
        buffers = UpsampleBuffers(
            logits=logits.address,
            active=count.address if count else 0,
            best=best.address,
            total=total.address,
            labels=labels.address,
            confidence=confidence.address,
        )
        launch = upsample_argmax_launch(
            buffers,
            (number, raw.shape[1], raw.shape[2]),
            float_type,
            first_category=first,
            start=position == 0,
            classes=classes,
            size=size,
        )
        machine.launch(launch, seed=seed)
    return labels.read(), confidence.read()


def expected(logits: Floats, size: tuple[int, int]) -> tuple[Array, Array]:
    """The CPU path on all categories at once."""
    reduced = UpsampleArgmax(*size, (logits.shape[1], logits.shape[2]), len(logits), threads=1)
    reduced.add(0, logits)
    return reduced.result()


def assert_same(got: tuple[Array, Array], want: tuple[Array, Array]) -> None:
    np.testing.assert_array_equal(got[0], want[0])
    assert got[0].dtype == want[0].dtype
    # float32 rounding of a sum may move a float16 to its neighbour.
    np.testing.assert_allclose(
        got[1].astype(np.float64), want[1].astype(np.float64), rtol=2**-10, atol=2**-24
    )


def drawn_logits(kind: str, shape: tuple[int, int, int], seed: int) -> Floats:
    random = np.random.default_rng(seed)
    if kind == "smooth":
        return random.normal(0, 3, shape).astype(np.float32)
    if kind == "ties":
        return random.choice(np.array([0.0, -0.0, 1.0, -1.0], np.float32), shape)
    if kind == "odd":
        values = [0.0, 1.0, math.nan, math.inf, -math.inf, 1e38, -1e38, 1e-42]
        return random.choice(np.array(values, np.float32), shape)
    return random.integers(0, 1 << 32, shape, np.uint32).view(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    logits: Floats
    float_type: FloatType
    size: tuple[int, int]
    chunks: Chunks
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    n = draw(st.integers(1, 12))
    edges = sorted({0, n, *draw(st.lists(st.integers(0, n), max_size=3))})
    chunks = [(a, b - a) for a, b in pairwise(edges)]
    shape = (n, draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    kind = draw(st.sampled_from(["smooth", "ties", "odd", "bits"]))
    return Case(
        logits=drawn_logits(kind, shape, draw(st.integers(0, 1 << 32))),
        float_type=draw(st.sampled_from(FLOAT_TYPES)),
        size=(draw(st.integers(1, 40)), draw(st.integers(1, 40))),
        chunks=draw(st.permutations(chunks)),
        seed=draw(st.integers(0, (1 << 32) - 1)),
    )


@settings(max_examples=120, database=None)
@given(case=cases())
def test_labels_are_those_of_the_cpu_path(machine: Machine, case: Case) -> None:
    raw, values = stored(case.logits, case.float_type)
    got = run(machine, raw, case.size, case.chunks, float_type=case.float_type, seed=case.seed)
    assert_same(got, expected(values, case.size))


@pytest.mark.parametrize("size", [(53, 80), (96, 96), (31, 200), (24, 1)])
def test_images_of_any_size(machine: Machine, size: tuple[int, int]) -> None:
    """Enlarged, reduced, and as they are."""
    logits = drawn_logits("smooth", (7, 24, 24), 3)
    assert_same(run(machine, logits, size, [(0, 4), (4, 3)]), expected(logits, size))


def test_more_labels_than_a_byte_holds(machine: Machine) -> None:
    logits = drawn_logits("smooth", (300, 3, 4), 1)
    logits[299] += 5
    labels, confidence = run(machine, logits, (6, 9), [(0, 150), (150, 150)])
    assert labels.max() == 299
    assert_same((labels, confidence), expected(logits, (6, 9)))


def test_equal_categories_share_the_confidence(machine: Machine) -> None:
    """Down to the denormal numbers of float16."""
    for n in (1, 2, 3, 1000, 20000):
        logits = np.full((n, 1, 1), 0.25, np.float32)
        assert_same(run(machine, logits, (2, 2), [(0, n)]), expected(logits, (2, 2)))


def test_categories_beyond_the_active_count_do_not_take_part(machine: Machine) -> None:
    logits = drawn_logits("smooth", (10, 5, 6), 2)
    for active in (1, 3, 4, 7, 10, 50):
        got = run(machine, logits, (20, 13), [(0, 4), (4, 4), (8, 2)], active=active)
        assert_same(got, expected(logits[:active], (20, 13)))


ROUND = """
extern "C" __global__ void to_half(const float* values, unsigned short* halves) {
  const unsigned i = blockIdx.x * 32 + threadIdx.x;
  halves[i] = half_of_fraction(values[i]);
}
"""


def test_confidences_are_rounded_to_float16_as_numpy_does(host_compiler: HostCompiler) -> None:
    """At every float16 in (0, 1], halfway to the next, and right beside that."""
    machine = HostMachine(host_compiler, kernel_source("escnet_upsample_argmax") + ROUND)
    grid = np.arange(1, 0x3C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middle = (grid + np.append(grid[1:], np.float32(1))) / np.float32(2)
    around = [
        grid,
        middle,
        np.nextafter(middle, np.float32(0)),
        np.nextafter(middle, np.float32(1)),
    ]
    values = np.concatenate([*around, np.ones(4 + 32, np.float32)])
    values = values[: len(values) // 32 * 32]
    given = Guarded(machine, values)
    halves = Guarded(machine, np.zeros(len(values), np.uint16))
    arguments = (ctypes.c_void_p(given.address), ctypes.c_void_p(halves.address))
    grid_size = (len(values) // 32, 1, 1)
    machine.launch(Launch(kernel="to_half", grid=grid_size, block=(32, 1, 1), arguments=arguments))
    np.testing.assert_array_equal(halves.read(), values.astype(np.float16).view(np.uint16))


NOWHERE = UpsampleBuffers(logits=0, active=0, best=0, total=0, labels=0, confidence=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (0, 4, 4)}, "expected every size to be at least 1"),
        ({"size": (0, 5)}, "image of 0×5 pixels"),
        ({"size": (1 << 16, 1 << 15)}, "fewer than 2\\^31 pixels"),
        ({"first_category": -1}, "got categories -1 to 0 of 2"),
        ({"first_category": 1}, "got categories 1 to 2 of 2; expected them within 0 to 1"),
        ({"classes": 65537}, "at most 65536"),
        ({"logit_type": "int8"}, "got type 'int8'"),
    ],
)
def test_what_the_kernel_does_not_take_is_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "shape": (2, 4, 4),
        "logit_type": "float32",
        "first_category": 0,
        "start": True,
        "classes": 2,
        "size": (5, 5),
    }
    with pytest.raises(InputError, match=message):
        upsample_argmax_launch(NOWHERE, **{**arguments, **change})
