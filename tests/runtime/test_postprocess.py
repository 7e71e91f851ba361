import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from escnet_runtime import postprocess
from escnet_runtime.errors import InputError
from escnet_runtime.postprocess import UpsampleArgmax, bilinear_taps, resize_bilinear

pytestmark = pytest.mark.usefixtures("native_form")

SIZES = [
    (1, 1, 6, 3),
    (37, 53, 12, 300),
    (40, 3, 12, 257),
    (3, 5000, 8, 5),
    (5, 9000, 6, 20),
    (20000, 10, 6, 20),
    (10, 20000, 6, 9),
    (9, 11, 24, 30),
    (12, 12, 12, 7),
    (100, 80, 1, 4),
    (64, 64, 9, 1),
]


def interpolated(logits: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear interpolation in float64 by numpy.interp, which clamps at the ends as it should."""

    def axis(values: np.ndarray, size: int) -> np.ndarray:
        cells = values.shape[-1]
        at = (np.arange(size) + 0.5) * cells / size - 0.5
        lines = values.reshape(-1, cells)
        rows = [np.interp(at, np.arange(cells), line) for line in lines]
        return np.array(rows).reshape(*values.shape[:-1], size)

    wide = axis(logits.astype(np.float64), width)
    return axis(wide.swapaxes(1, 2), height).swapaxes(1, 2)


def field(classes: int, grid: int, *, seed: int = 0, step: int = 0) -> NDArray[np.float32]:
    """Random logits; with a step, only few different ones, so that ties are common."""
    values = np.random.default_rng(seed).normal(0, 4, (classes, grid, grid))
    return (np.round(values / step) if step else values).astype(np.float32)


def run(
    logits: NDArray[np.float32], height: int, width: int, chunk: int, threads: int | None = 2
) -> tuple[np.ndarray, np.ndarray]:
    classes = len(logits)
    _, *grid = logits.shape
    upsample = UpsampleArgmax(height, width, (grid[0], grid[1]), classes, threads=threads)
    for first in range(0, classes, chunk):
        upsample.add(first, logits[first : first + chunk])
    return upsample.result()


@pytest.mark.parametrize(("height", "width", "grid", "classes"), SIZES)
def test_agrees_with_the_plain_form(height: int, width: int, grid: int, classes: int) -> None:
    logits = field(classes, grid)
    labels, confidence = run(logits, height, width, chunk=16)
    assert labels.shape == confidence.shape == (height, width)
    assert labels.dtype == (np.uint8 if classes <= 256 else np.uint16)
    assert confidence.dtype == np.float16
    plain = interpolated(logits, height, width)
    ours = np.take_along_axis(plain, labels[None].astype(int), 0)[0]
    top = plain.max(0)
    np.testing.assert_allclose(ours, top, atol=1e-4)  # the winner, or as good as it
    clear = np.sort(plain, 0)[-min(2, classes)] < top - 1e-4
    np.testing.assert_array_equal(labels[clear], plain.argmax(0)[clear])
    softmax = 1 / np.exp(plain - top).sum(0)
    np.testing.assert_allclose(confidence, softmax, atol=1e-3)


@pytest.mark.parametrize(("height", "width", "grid", "classes"), SIZES)
def test_labels_do_not_depend_on_chunks_or_threads(
    height: int, width: int, grid: int, classes: int
) -> None:
    logits = field(classes, grid, seed=1, step=4)
    labels, confidence = run(logits, height, width, chunk=classes, threads=1)
    for chunk, threads in ((3, 1), (classes, 3), (50, None)):
        if classes // chunk > 60:
            continue
        others = run(logits, height, width, chunk, threads)
        np.testing.assert_array_equal(labels, others[0])
        np.testing.assert_allclose(confidence, others[1], atol=1e-3)


@pytest.mark.parametrize(("height", "width", "grid", "classes"), SIZES)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_large_image_has_the_bits_of_a_small_one(
    height: int, width: int, grid: int, classes: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its logits wait for each other, while there are no more of them than pixels."""
    logits = field(classes, grid, step=2)
    labels, confidence = run(logits, height, width, chunk=16, threads=threads)
    monkeypatch.setattr(postprocess, "_LARGE", 1)
    again = run(logits, height, width, chunk=16, threads=threads)
    np.testing.assert_array_equal(again[0], labels)
    assert again[0].dtype == labels.dtype
    np.testing.assert_array_equal(again[1], confidence)


def test_a_large_image_takes_little_memory_and_can_be_asked_for_twice() -> None:
    height, width = 2000, 2200
    logits = field(3, 24)
    tracemalloc.start()
    try:
        upsample = UpsampleArgmax(height, width, (24, 24), 3, threads=1)
        given = logits.copy()
        upsample.add(0, given)
        given[:] = 0  # it is the caller's own again
        labels, confidence = upsample.result()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4.5 * height * width  # 3 bytes a pixel are labels and confidence
    np.testing.assert_array_equal(labels, run(logits, height, width, chunk=2)[0])
    labels[:] = 9
    assert upsample.result()[0].max() < 3
    np.testing.assert_array_equal(upsample.result()[1], confidence)


def test_labels_are_the_argmax_of_resize_bilinear() -> None:
    for step in (0, 4):  # 4: exact ties
        logits = field(40, 12, seed=2, step=step)
        labels, _ = run(logits, 50, 61, chunk=7)
        np.testing.assert_array_equal(labels, resize_bilinear(logits, 50, 61).argmax(0))


def test_order_of_the_chunks_does_not_matter() -> None:
    logits = field(9, 5, step=4)
    upsample = UpsampleArgmax(20, 30, (5, 5), 9)
    for first in (6, 0, 3):
        upsample.add(first, logits[first : first + 3])
    np.testing.assert_array_equal(upsample.result()[0], run(logits, 20, 30, 9)[0])


def test_ties_go_to_the_lowest_category() -> None:
    logits = np.zeros((70, 3, 4), np.float32)
    for chunk in (1, 20, 70):
        labels, confidence = run(logits, 11, 13, chunk)
        assert not labels.any()
        np.testing.assert_allclose(confidence, 1 / 70, atol=1e-5)


def test_same_size_is_the_identity() -> None:
    logits = field(11, 8)
    np.testing.assert_array_equal(resize_bilinear(logits, 8, 8), logits)
    np.testing.assert_array_equal(run(logits, 8, 8, 4)[0], logits.argmax(0))


def test_resize_bilinear_clamps_at_the_border() -> None:
    result = resize_bilinear(np.array([[[0, 4]]], np.float32), 1, 4)
    np.testing.assert_array_equal(result, [[[0, 1, 3, 4]]])
    taps = bilinear_taps(2, 4)
    assert taps.upper.max() == 1


def test_nan_loses_and_infinity_wins() -> None:
    logits = np.zeros((3, 2, 2), np.float32)
    logits[0] = np.nan
    logits[1, :, 0] = -np.inf
    logits[1, :, 1] = np.inf
    logits[2] = -1e20
    labels, confidence = run(logits, 2, 2, 3)
    np.testing.assert_array_equal(labels, [[2, 1], [2, 1]])
    np.testing.assert_array_equal(confidence, 1)


def test_only_nan_gives_label_0_and_no_confidence() -> None:
    labels, confidence = run(np.full((4, 2, 2), np.nan, np.float32), 9, 9, 2)
    assert not labels.any()
    np.testing.assert_array_equal(confidence, 0.25)


def test_a_nan_does_not_spread_past_its_neighbours() -> None:
    logits = np.zeros((2, 1, 8), np.float32)
    logits[1] = 1
    logits[1, 0, 0] = np.nan
    labels, _ = run(logits, 1, 80, 2)
    assert not labels[0, :15].any()
    assert labels[0, 15:].all()


def test_huge_logits_stay_finite() -> None:
    logits = field(5, 4) * np.float32(1e37)
    with np.errstate(all="raise"):
        labels, confidence = run(logits, 4, 4, 2, threads=1)
    assert np.isfinite(confidence).all()
    assert labels.max() < 5


def test_large_offsets_do_not_spoil_the_confidence() -> None:
    logits = np.array([1000, 1000 - np.log(3)], np.float32).reshape(2, 1, 1)
    np.testing.assert_allclose(run(logits, 2, 2, 1)[1], 0.75, atol=1e-3)


def test_the_callers_logits_are_not_changed() -> None:
    logits = field(3, 4)
    logits[0, 0, 0] = np.nan
    before = logits.copy()
    run(logits, 30, 30, 3)
    np.testing.assert_array_equal(logits, before)


def test_misuse_is_refused() -> None:
    upsample = UpsampleArgmax(4, 4, (3, 3), 5)
    chunk = np.zeros((2, 3, 3), np.float32)
    upsample.add(0, chunk)
    with pytest.raises(InputError, match="second time"):
        upsample.add(1, chunk)
    with pytest.raises(InputError, match="there are 5"):
        upsample.add(4, chunk)
    with pytest.raises(InputError, match="there are 5"):
        upsample.add(-1, chunk)
    with pytest.raises(InputError, match=r"expected float32 \[n, 3, 3\]"):
        upsample.add(2, np.zeros((2, 3, 4), np.float32))
    with pytest.raises(InputError, match="float64"):
        upsample.add(2, chunk.astype(np.float64))
    with pytest.raises(InputError, match="category 2 is missing"):
        upsample.result()


@pytest.mark.parametrize(
    "arguments", [(0, 4, (3, 3), 5), (4, 4, (3, 0), 5), (4, 4, (3, 3), 0), (4, 4, (3, 3), 65537)]
)
def test_impossible_sizes_are_refused(arguments: tuple[int, int, tuple[int, int], int]) -> None:
    with pytest.raises(InputError, match="got"):
        UpsampleArgmax(*arguments)
