"""The prompt generator in C gives the bits that NumPy gives."""

import ctypes
import dataclasses
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings

from escnet_runtime.native import NativeLibrary
from escnet_runtime.native.prompts import fill_prompts
from escnet_runtime.ppg import PpgConstants, Prompts, empty_prompts, pseudo_prompts
from escnet_runtime.ppg_numpy import numpy_prompts
from tests.kernels.test_ppg_kernel import Case, blobs, cases, extremes, ties
from tests.native.compiled import SOURCE, compile_c, function

Floats = npt.NDArray[np.float32]

DEFAULT = PpgConstants()
POINTER = ctypes.c_void_p


def in_c(library: NativeLibrary, scores: Floats, constants: PpgConstants = DEFAULT) -> Prompts:
    prompts = empty_prompts(scores, constants)
    for field in dataclasses.fields(prompts):
        getattr(prompts, field.name).fill(77)  # what no prompt holds
    fill_prompts(library, scores, constants, prompts)
    return prompts


def in_numpy(scores: Floats, constants: PpgConstants = DEFAULT) -> Prompts:
    prompts = empty_prompts(scores, constants)
    numpy_prompts(scores, constants, prompts)
    return prompts


def assert_same_bits(got: Prompts, want: Prompts) -> None:
    for field in dataclasses.fields(Prompts):
        ours, theirs = getattr(got, field.name), getattr(want, field.name)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours.view(np.int32), theirs.view(np.int32), field.name)


@settings(max_examples=300, database=None)
@given(case=cases())
def test_all_bits_are_those_of_numpy(library: NativeLibrary, case: Case) -> None:
    got = in_c(library, case.scores, case.constants)
    assert_same_bits(got, in_numpy(case.scores, case.constants))


@pytest.mark.parametrize("regions", [1, 5, 16])
@pytest.mark.parametrize(
    "shape", [(16, 16), (24, 24), (32, 32), (1, 1024), (1024, 1), (2, 512), (8, 128), (1, 1)]
)
def test_the_largest_grids_with_all_pixels_in_the_foreground(
    library: NativeLibrary, shape: tuple[int, int], regions: int
) -> None:
    """Past 2^53, float64 no longer tells all distances apart."""
    random = np.random.default_rng(regions)
    scores = np.zeros((8, *shape), np.float32)
    scores[1:] += random.uniform(0, 0.014, scores[1:].shape)  # about all of them
    scores[2:5][random.random(scores[2:5].shape) < 0.3] = math.nan
    constants = PpgConstants(regions=regions, iterations=40)
    assert_same_bits(in_c(library, scores, constants), in_numpy(scores, constants))


def test_many_categories(library: NativeLibrary) -> None:
    """More than NumPy takes at a time."""
    for make in (blobs, ties, extremes):
        scores = make(1100, 7, 9, 3)
        assert_same_bits(in_c(library, scores), in_numpy(scores))


def test_views_are_read_right(library: NativeLibrary) -> None:
    scores = blobs(6, 10, 12)
    unaligned = np.frombuffer(b"\0" + scores.tobytes(), np.uint8)[1:].view(np.float32)
    views = [scores.transpose(0, 2, 1)[::2], scores[:, ::-1, ::2], unaligned.reshape(scores.shape)]
    readonly = scores.copy()
    readonly.flags.writeable = False
    for view in [*views, readonly]:
        assert_same_bits(in_c(library, view), in_numpy(view.copy()))


def test_the_environment_chooses_the_form(
    library: NativeLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    monkeypatch.setattr("escnet_runtime.ppg.numpy_prompts", lambda *_: called.append("numpy"))
    monkeypatch.setattr("escnet_runtime.ppg.fill_prompts", lambda *_: called.append("c"))
    for value in ("1", "", "0", "off"):
        monkeypatch.setenv("ESCNET_NATIVE", value)
        pseudo_prompts(blobs(1, 3, 3), DEFAULT)
    assert called == ["c", "c", "numpy", "numpy"]


# One step of k-means from centroids of the test's choice, on a row of four pixels.
STEP = """
void step(int64_t* centroids, int32_t* regions) {
  static Foreground map;
  int32_t keys[4] = {0, 0, 0, 0};
  Centroid all[3];
  for (int k = 0; k < 3; ++k) {
    all[k] = (Centroid){centroids[k], centroids[3 + k], centroids[6 + k]};
  }
  list_foreground(keys, 0, 1, 4, &map);
  cluster(&map, 1, all, 3, 1);
  for (int k = 0; k < 3; ++k) {
    centroids[k] = all[k].count;
    centroids[3 + k] = all[k].x;
    centroids[6 + k] = all[k].y;
  }
  for (int i = 0; i < 4; ++i) regions[i] = (int32_t)map.region[i];
}
"""


def test_a_region_that_empties_keeps_its_centroid(compiler: str, tmp_path: Path) -> None:
    """Through the step itself: no map of a million random ones empties a region by its seeds."""
    built = compile_c([SOURCE["prompts.c"] + STEP], tmp_path, compiler=compiler)
    # Centroids at 1/2, 5/2 and 7 = 14/2, which no pixel is nearest to.
    centroids = np.array([[2, 2, 2], [1, 5, 14], [0, 0, 0]], np.int64)
    moved, regions = centroids.copy(), np.full(4, 77, np.int32)
    function(built, "step")(moved.ctypes.data_as(POINTER), regions.ctypes.data_as(POINTER))
    np.testing.assert_array_equal(moved, centroids)
    assert regions.tolist() == [0, 0, 1, 1]
