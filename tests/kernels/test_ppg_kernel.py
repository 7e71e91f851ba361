"""The CUDA kernel of the prompt generator chooses the pixels that NumPy chooses, bit for bit."""

import ctypes
import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from escnet_runtime.device import Device
from escnet_runtime.errors import InputError
from escnet_runtime.kernels import (
    FloatType,
    Launch,
    PpgBuffers,
    PpgParts,
    kernel_source,
    ppg_launch,
)
from escnet_runtime.ppg import PpgConstants, Prompts, pseudo_prompts
from tests.kernels.host import HostCompiler, KernelFaultError
from tests.kernels.machines import (
    FLOAT_TYPES,
    Array,
    GpuMachine,
    Guarded,
    HostMachine,
    Machine,
    stored,
)

Floats = npt.NDArray[np.float32]

DEFAULT = PpgConstants()
SOURCE = kernel_source("escnet_ppg")


# --- running the kernel --------------------------------------------------------------------------


class Buffers:
    """The kernel's arrays for maps of one shape. Outputs start with what no prompt holds."""

    def __init__(self, machine: Machine, raw: Array, regions: int, active: int | None) -> None:
        n, h, w = raw.shape
        self.scores = Guarded(machine, raw)
        self.active = None if active is None else Guarded(machine, np.array([active], np.int32))
        self.points = Guarded(machine, np.full((n, regions, 2), 77, np.float32))
        self.point_labels = Guarded(machine, np.full((n, regions), 77, np.int32))
        self.regions = Guarded(machine, np.full((n, h, w), 77, np.int32))
        self.probabilities = Guarded(machine, np.full((n, h, w), 77, np.float32))

    def addresses(self) -> PpgBuffers:
        return PpgBuffers(
            scores=self.scores.address,
            active=self.active.address if self.active else 0,
            points=self.points.address,
            point_labels=self.point_labels.address,
            regions=self.regions.address,
            probabilities=self.probabilities.address,
        )

    def prompts(self) -> Prompts:
        return Prompts(
            points=self.points.read(),
            point_labels=self.point_labels.read(),
            regions=self.regions.read(),
            probabilities=self.probabilities.read(),
        )


def run(
    machine: Machine,
    raw: Array,
    constants: PpgConstants = DEFAULT,
    *,
    float_type: FloatType = "float32",
    active: int | None = None,
    seed: int = 0,
) -> Prompts:
    """The kernel's prompts of maps as they lie in memory (bfloat16 as uint16)."""
    buffers = Buffers(machine, raw, constants.regions, active)
    shape = (raw.shape[0], raw.shape[1], raw.shape[2])
    machine.launch(ppg_launch(buffers.addresses(), shape, float_type, constants), seed=seed)
    np.testing.assert_array_equal(buffers.scores.read().view(np.uint8), raw.view(np.uint8))
    return buffers.prompts()


def expected(scores: Floats, constants: PpgConstants, active: int | None = None) -> Prompts:
    """NumPy's prompts; categories that are not active have no usable pixel."""
    scores = scores.copy()
    if active is not None:
        scores[max(active, 0) :] = -np.inf
    return pseudo_prompts(scores, constants)


def assert_same(got: Prompts, want: Prompts) -> None:
    for name in ("points", "point_labels", "regions"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name), err_msg=name)
    # The quotient is the same; exp may differ by two units in the last place.
    np.testing.assert_allclose(got.probabilities, want.probabilities, rtol=3e-7, atol=1e-44)


def test_chunks_lie_where_they_are_asked_for(machine: Machine) -> None:
    """Each array has a step of its own from chunk to chunk; nothing between is written."""
    scores = blobs(11, 9, 13)
    want = expected(scores, DEFAULT, active=9)
    steps = {"scores": 600, "points": 64, "point_labels": 64, "regions": 512, "probabilities": 520}
    kinds = {
        name: np.int32 if name in ("point_labels", "regions") else np.float32 for name in steps
    }
    arrays = {
        name: Guarded(machine, np.full((3, step), 77, kinds[name])) for name, step in steps.items()
    }
    spread = np.full((3, 600), math.nan, np.float32)
    for chunk in range(3):
        part = scores[4 * chunk : 4 * chunk + 4]
        spread[chunk, : part.size] = part.ravel()
    arrays["scores"] = Guarded(machine, spread)
    active = Guarded(machine, np.array([9], np.int32))
    places = {name: array.address for name, array in arrays.items()}
    launch = ppg_launch(
        PpgBuffers(active=active.address, **places),
        (11, 9, 13),
        "float32",
        DEFAULT,
        parts=PpgParts(rows=4, **steps),
    )
    machine.launch(launch, seed=3)
    for name in ("points", "point_labels", "regions", "probabilities"):
        got, whole = arrays[name].read(), getattr(want, name)
        for chunk in range(3):
            part = whole[4 * chunk : 4 * chunk + 4].ravel()
            np.testing.assert_allclose(got[chunk, : part.size], part, rtol=3e-7, err_msg=name)
            assert (got[chunk, part.size :] == 77).all()


def test_parts_that_are_none_are_refused() -> None:
    steps = dict.fromkeys(("scores", "points", "point_labels", "regions", "probabilities"), 0)
    for change in ({"rows": 0}, {"rows": 4, "points": -1}, {"rows": 4, "regions": 1 << 31}):
        with pytest.raises(InputError, match="expected at least one row"):
            ppg_launch(
                *(NOWHERE, (8, 4, 4), "float32", DEFAULT), parts=PpgParts(**{**steps, **change})
            )


# --- maps ----------------------------------------------------------------------------------------


def blobs(n: int, h: int, w: int, seed: int = 0) -> Floats:
    """Smooth maps with several peaks of similar height, as correlations have them."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:h, :w]
    maps = random.normal(0, 0.004, (n, h, w))
    for category in range(n):
        for _ in range(4):
            cy, cx, radius = random.uniform(0, h), random.uniform(0, w), random.uniform(1.5, 5)
            maps[category] += 0.05 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * radius**2))
    return maps.astype(np.float32)


def ties(n: int, h: int, w: int, seed: int) -> Floats:
    random = np.random.default_rng(seed)
    values = np.array([0.0, -0.0, 0.01, 0.02, math.nan, -math.inf], np.float32)
    return random.choice(values, (n, h, w))


def flat(n: int, h: int, w: int, seed: int) -> Floats:
    values = np.array([0.0, -0.0, 1e-42, 0.3, -3e38, 3e38, math.inf, -math.inf, math.nan])
    chosen = np.random.default_rng(seed).choice(values.astype(np.float32), (n, 1, 1))
    return np.broadcast_to(chosen, (n, h, w)).copy()


def extremes(n: int, h: int, w: int, seed: int) -> Floats:
    """Any bit pattern: denormals, infinities, NaN with any payload."""
    return np.random.default_rng(seed).integers(0, 1 << 32, (n, h, w), np.uint32).view(np.float32)


def infinite(n: int, h: int, w: int, seed: int) -> Floats:
    scores = blobs(n, h, w, seed)
    drawn = np.random.default_rng(seed).random(scores.shape)
    scores[drawn < 0.2] = math.inf
    scores[drawn > 0.8] = -math.inf
    return scores


Maps = Callable[[int, int, int, int], Floats]
KINDS: list[Maps] = [blobs, ties, flat, extremes, infinite]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    scores: Floats
    constants: PpgConstants
    float_type: FloatType
    active: int | None
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Maps of any h×w up to 1024 pixels, few where they are large, with any constants."""
    h = draw(st.integers(1, 1024) | st.integers(1, 32))
    w = draw(st.integers(1, min(1024 // h, 1024)))
    n = draw(st.integers(1, max(1, min(40, 2048 // (h * w)))))
    kind = draw(st.sampled_from(KINDS))
    return Case(
        scores=kind(n, h, w, draw(st.integers(0, 1 << 32))),
        constants=PpgConstants(
            temperature=draw(st.sampled_from([0.02, 0.1, 1e-30, 1e30])),
            alpha=draw(st.sampled_from([0.5, 0.1, 1e-30, 1.0])),
            regions=draw(st.integers(1, 8) | st.just(16)),
            iterations=draw(st.integers(0, 12) | st.just(1000)),
        ),
        float_type=draw(st.sampled_from(FLOAT_TYPES)),
        active=draw(st.none() | st.integers(-1, n + 2)),
        seed=draw(st.integers(0, (1 << 32) - 1)),
    )


# --- the same as NumPy ---------------------------------------------------------------------------


@settings(max_examples=120, database=None)
@given(case=cases())
def test_the_kernel_decides_as_numpy(machine: Machine, case: Case) -> None:
    raw, values = stored(case.scores, case.float_type)
    got = run(
        machine,
        raw,
        case.constants,
        float_type=case.float_type,
        active=case.active,
        seed=case.seed,
    )
    assert_same(got, expected(values, case.constants, case.active))


@pytest.mark.parametrize("shape", [(24, 24), (32, 32), (1, 1024), (1024, 1), (2, 512), (64, 16)])
@pytest.mark.parametrize("regions", [1, 5, 16])
def test_the_largest_grids(machine: Machine, shape: tuple[int, int], regions: int) -> None:
    scores = np.concatenate([blobs(2, *shape), np.zeros((1, *shape), np.float32)])
    scores[1, :, ::3] = math.nan
    constants = PpgConstants(regions=regions)
    assert_same(run(machine, scores, constants, seed=5), expected(scores, constants))


@pytest.mark.parametrize("n", [1, 2, 33, 1000])
def test_any_number_of_categories_in_one_launch(machine: Machine, n: int) -> None:
    scores = blobs(n, 4, 7)
    assert_same(run(machine, scores), expected(scores, DEFAULT))


@pytest.mark.parametrize("float_type", ["float16", "bfloat16"])
def test_every_bit_pattern_of_the_short_types(machine: Machine, float_type: FloatType) -> None:
    """Probabilities tell the values apart when the temperature is the spread of a map."""
    raw = np.arange(1 << 16, dtype=np.uint16).reshape(64, 1, 1, 1024)
    for one in raw:
        kept: Array = one
        if float_type == "float16":
            kept = one.view(np.float16)
            values = kept.astype(np.float32)
        else:
            values = (one.astype(np.uint32) << 16).view(np.float32)
        finite = values[np.isfinite(values)].astype(np.float64)
        spread = float(np.ptp(finite)) if finite.size else 1.0
        constants = PpgConstants(temperature=min(max(spread, 1e-30), 1e30), regions=1, iterations=0)
        got = run(machine, kept, constants, float_type=float_type)
        assert_same(got, expected(values, constants))


def test_the_threshold_is_one_float32_addition(machine: Machine) -> None:
    peak = np.float32(0.7)
    edge = peak + np.float32(DEFAULT.threshold_offset)
    scores = np.array([[[peak, edge, np.nextafter(edge, np.float32(-1))]]], np.float32)
    assert run(machine, scores).regions.tolist() == [[[0, 1, -1]]]


def test_the_order_of_threads_changes_nothing(host: HostMachine) -> None:
    scores = blobs(2, 24, 24)
    want = expected(scores, DEFAULT)
    for seed in range(8):
        assert_same(run(host, scores, seed=seed), want)


def test_zeros_of_both_signs_are_equal(machine: Machine) -> None:
    """As peaks and as the best pixels of regions."""
    zeros = np.random.default_rng(0).choice(np.array([0.0, -0.0], np.float32), (20, 3, 5))
    zeros[:, 0, 0] = -0.0
    assert_same(run(machine, zeros), expected(zeros, DEFAULT))


# One step of k-means from centroids of the test's choice.
STEP = """
extern "C" __global__ void step(const int* centroids, int* result, int* region_map) {
  __shared__ Shared shared;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < 3) {
    shared.centroid[thread] = {centroids[thread], centroids[3 + thread], centroids[6 + thread]};
    shared.moved[thread] = {0, 0, 0};
  }
  __syncthreads();
  region_map[thread] = cluster(shared, thread < 4, thread, 0, 3, 1);
  if (thread < 3) {
    result[thread] = shared.centroid[thread].count;
    result[3 + thread] = shared.centroid[thread].sum_x;
    result[6 + thread] = shared.centroid[thread].sum_y;
  }
}
"""


def test_a_region_that_empties_keeps_its_centroid(host_compiler: HostCompiler) -> None:
    """Through the step itself: no map of a million random ones empties a region by its seeds."""
    machine = HostMachine(host_compiler, SOURCE + STEP)
    # Pixels 0 to 3 of a row; centroids at 1/2, 5/2 and 7 = 14/2, which no pixel is nearest to.
    centroids = np.array([[2, 2, 2], [1, 5, 14], [0, 0, 0]], np.int32)
    given, result = Guarded(machine, centroids), Guarded(machine, np.zeros_like(centroids))
    regions = Guarded(machine, np.zeros(32, np.int32))
    arguments = [ctypes.c_void_p(one.address) for one in (given, result, regions)]
    machine.launch(
        Launch(kernel="step", grid=(1, 1, 1), block=(32, 1, 1), arguments=tuple(arguments))
    )
    np.testing.assert_array_equal(result.read(), centroids)
    assert regions.read().tolist() == [0, 0, 1, 1] + [-1] * 28


# --- the active count ----------------------------------------------------------------------------


def test_one_launch_serves_every_vocabulary_up_to_its_bucket(machine: Machine) -> None:
    """The launch is made once; only the number in the machine's memory changes."""
    scores = blobs(6, 5, 8)
    for active in (0, 1, 4, 6, 100):
        assert_same(run(machine, scores, active=active), expected(scores, DEFAULT, active))


@pytest.mark.gpu
def test_a_captured_graph_reads_the_count_when_it_runs(cuda_device: Device) -> None:
    machine, scores = GpuMachine(cuda_device), blobs(64, 24, 24)
    buffers = Buffers(machine, scores, DEFAULT.regions, active=64)
    cuda_device.prepare("escnet_ppg")
    with (
        cuda_device.stream() as stream,
        cuda_device.allocate(4) as count,
        cuda_device.allocate_host(4) as given,
    ):
        addresses = dataclasses.replace(buffers.addresses(), active=count.address)
        launch = ppg_launch(addresses, (64, 24, 24), "float32", DEFAULT)
        with cuda_device.capture(stream, lambda: cuda_device.launch(launch, stream)) as graph:
            for active in (64, 19, 1, 0, 33):
                given.array.view(np.int32)[0] = active
                cuda_device.upload(count.address, given, 4, stream)
                graph.launch(stream)
                stream.synchronize()
                assert_same(buffers.prompts(), expected(scores, DEFAULT, active))


# --- barriers ------------------------------------------------------------------------------------

BARRIER = re.compile(r"__syncthreads(?:\(\)|_or(?=\())")
BARRIERS = list(BARRIER.finditer(SOURCE))


def without(barrier: re.Match[str]) -> str:
    """The source without one barrier; what ``__syncthreads_or(x)`` joins stays each thread's x."""
    return SOURCE[: barrier.start()] + SOURCE[barrier.end() :]


def test_every_barrier_has_a_mutant() -> None:
    assert len(BARRIERS) == SOURCE.count("__syncthreads") == 7


@pytest.mark.parametrize("number", range(len(BARRIERS)))
def test_a_missing_barrier_is_found(host_compiler: HostCompiler, number: int) -> None:
    mutant = HostMachine(host_compiler, without(BARRIERS[number]))
    scores = blobs(1, 8, 12)
    want = expected(scores, DEFAULT)
    found = []
    for seed in range(4):
        try:
            assert_same(run(mutant, scores, seed=seed), want)
        except (AssertionError, KernelFaultError) as error:
            found.append(str(error))
    assert found, f"nothing tells that the barrier at {BARRIERS[number]} is missing"


# --- bad input -----------------------------------------------------------------------------------

NOWHERE = PpgBuffers(scores=0, active=0, points=0, point_labels=0, regions=0, probabilities=0)


@pytest.mark.parametrize("shape", [(0, 4, 4), (1, 0, 4), (1, 4, 0), (1, 25, 41), (1 << 31, 1, 1)])
def test_shapes_the_kernel_does_not_take_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match=r"got maps \[.*1 to 1024 pixels"):
        ppg_launch(NOWHERE, shape, "float32", DEFAULT)


def test_other_types_are_refused() -> None:
    wrong: Any = "float64"
    with pytest.raises(InputError, match="got type 'float64'; expected one of float32, float16"):
        ppg_launch(NOWHERE, (1, 1, 1), wrong, DEFAULT)


def test_a_block_is_whole_warps() -> None:
    for pixels, threads in [(1, 32), (32, 32), (33, 64), (576, 576), (1024, 1024)]:
        launch = ppg_launch(NOWHERE, (19, 1, pixels), "float32", DEFAULT)
        assert (launch.grid, launch.block) == ((19, 1, 1), (threads, 1, 1))
