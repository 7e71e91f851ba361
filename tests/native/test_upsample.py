"""Up-sampling in C gives NumPy's labels, and its confidence to float32 rounding."""

import ctypes
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from escnet_runtime.bilinear import bilinear_taps
from escnet_runtime.native import NativeLibrary
from escnet_runtime.native.target import targets
from escnet_runtime.native.upsample import NativeRows
from escnet_runtime.postprocess import UpsampleArgmax
from escnet_runtime.reduction import NumpyRows, PixelState
from tests.kernels.test_upsample_kernel import Case, Chunks, cases, drawn_logits
from tests.native.compiled import SOURCE, compile_c, function

Floats = npt.NDArray[np.float32]
POINTER = ctypes.c_void_p


def state(grid: tuple[int, int], size: tuple[int, int], classes: int) -> PixelState:
    return PixelState(
        rows=bilinear_taps(grid[0], size[0]),
        columns=bilinear_taps(grid[1], size[1]),
        best=np.full(size, -np.inf, np.float32),
        total=np.zeros(size, np.float32),
        label=np.zeros(size, np.uint8 if classes <= 256 else np.uint16),
    )


def reduced(
    make: type[NumpyRows] | NativeLibrary, logits: Floats, size: tuple[int, int], chunks: Chunks
) -> tuple[PixelState, npt.NDArray[np.float16]]:
    found = state((logits.shape[1], logits.shape[2]), size, len(logits))
    rows = NativeRows(make, found) if isinstance(make, NativeLibrary) else make(found)
    for first, number in chunks:
        if number:
            rows.reduce(first, rows.prepared(logits[first : first + number]), range(size[0]))
    return found, rows.confidence()


def assert_same(
    library: NativeLibrary, logits: Floats, size: tuple[int, int], chunks: Chunks
) -> None:
    got, got_confidence = reduced(library, logits, size, chunks)
    want, want_confidence = reduced(NumpyRows, logits, size, chunks)
    np.testing.assert_array_equal(got.label, want.label)
    np.testing.assert_array_equal(got.best, want.best)
    np.testing.assert_allclose(got.total, want.total, rtol=3e-6 + 2e-7 * len(logits))
    # float32 rounding of a sum may move a float16 to its neighbour.
    steps = got_confidence.view(np.int16).astype(int) - want_confidence.view(np.int16)
    assert abs(steps).max() <= 1


@settings(max_examples=300, database=None)
@given(case=cases())
def test_labels_are_those_of_numpy(library: NativeLibrary, case: Case) -> None:
    assert_same(library, case.logits, case.size, case.chunks)


@settings(max_examples=60, database=None)
@given(
    grid=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 60), st.integers(1, 400)),
    kind=st.sampled_from(["smooth", "ties", "odd", "bits"]),
    classes=st.sampled_from([1, 63, 64, 65, 130, 257, 300]),
    chunk=st.integers(1, 300),
    seed=st.integers(0, 1 << 32),
)
def test_more_than_a_tile_holds(
    library: NativeLibrary,
    grid: tuple[int, int],
    size: tuple[int, int],
    kind: str,
    classes: int,
    chunk: int,
    seed: int,
) -> None:
    """Wider than a tile, taller than one between two rows of the grid, more than a block."""
    logits = drawn_logits(kind, (classes, *grid), seed)
    chunks = [(first, min(chunk, classes - first)) for first in range(0, classes, chunk)]
    assert_same(library, logits, size, chunks[::-1])


@pytest.mark.parametrize("size", [(1, 1), (3, 5000), (5000, 3), (130, 129), (96, 128), (7, 7)])
def test_sizes(library: NativeLibrary, size: tuple[int, int]) -> None:
    assert_same(library, drawn_logits("smooth", (9, 24, 31), 3), size, [(4, 5), (0, 4)])


def test_rows_beside_those_asked_for_are_left_alone(library: NativeLibrary) -> None:
    logits = drawn_logits("smooth", (5, 6, 7), 0)
    whole, _ = reduced(library, logits, (40, 33), [(0, 5)])
    found = state((6, 7), (40, 33), 5)
    NativeRows(library, found).reduce(0, logits, range(11, 29))
    for name in ("best", "total", "label"):
        ours, untouched = getattr(found, name), getattr(state((6, 7), (40, 33), 5), name)
        np.testing.assert_array_equal(ours[11:29], getattr(whole, name)[11:29])
        np.testing.assert_array_equal(ours[:11], untouched[:11])
        np.testing.assert_array_equal(ours[29:], untouched[29:])


def test_both_forms_through_the_public_face(
    library: NativeLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With threads, and a view that is not contiguous."""
    logits = drawn_logits("odd", (70, 24, 24), 1).transpose(0, 2, 1)
    found = []
    for value in ("0", "1"):
        monkeypatch.setenv("ESCNET_NATIVE", value)
        upsample = UpsampleArgmax(300, 200, (24, 24), 70, threads=3)
        assert isinstance(upsample._rows, (NumpyRows, NativeRows)[int(value)])
        upsample.add(40, logits[40:])
        upsample.add(0, logits[:40])
        found.append(upsample.result())
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_allclose(
        found[0][1].astype(np.float64), found[1][1].astype(np.float64), rtol=2**-10
    )


def test_confidence_has_numpys_bits(library: NativeLibrary) -> None:
    """Of totals from 1 to 65536, the float16 numbers below 2^-14 among them."""
    total = np.concatenate(
        [
            np.geomspace(1, 65536, 1 << 20, dtype=np.float32),
            np.arange(1, 65537, dtype=np.float32),
            (1 / (np.arange(1 << 10, (1 << 12) + 1) + 0.5) * 4096 * 16).astype(np.float32),
        ]
    )
    got = np.empty(total.size, np.float16)
    library.confidence(total.ctypes.data, got.ctypes.data, total.size)
    want = np.reciprocal(total).astype(np.float16)
    np.testing.assert_array_equal(got.view(np.uint16), want.view(np.uint16))


EXP = """
void each(const float* x, float* result, int32_t count) {
  for (int32_t i = 0; i < count; ++i) result[i] = exp_of_minus(x[i]);
}
"""


@pytest.mark.parametrize("flags", targets(), ids=" ".join)
def test_exp_is_right_over_the_whole_range(
    flags: tuple[str, ...], compiler: str, tmp_path: Path
) -> None:
    """A number of every few hundred up to 86, and what lies beyond; fused products or not."""
    built = compile_c([SOURCE["upsample.c"] + EXP], tmp_path, compiler=compiler, flags=flags)
    last = int(np.array([86], np.float32).view(np.uint32)[0])
    x = np.append(np.arange(0, last, 411).astype(np.uint32), np.uint32(last)).view(np.float32)
    x = np.concatenate([x, np.linspace(0, 86, 1 << 20, dtype=np.float32)])
    found = np.empty_like(x)
    for sign in (1, -1):
        given = (sign * x).astype(np.float32)
        call = function(built, "each")
        call(given.ctypes.data_as(POINTER), found.ctypes.data_as(POINTER), ctypes.c_int32(x.size))
        error = found / np.exp(-x.astype(np.float64)) - 1
        assert abs(error).max() < 2.5e-7
    assert found[0] == 1
    beyond = np.array([86.1, 88, 104, 1e30, np.finfo(np.float32).max, np.inf], np.float32)
    call(beyond.ctypes.data_as(POINTER), found.ctypes.data_as(POINTER), ctypes.c_int32(6))
    assert (found[:6] < 1e-37).all()
    assert (found[:6] >= 0).all()
