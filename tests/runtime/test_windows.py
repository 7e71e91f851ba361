import numpy as np
import pytest

from escnet_runtime.errors import InputError
from escnet_runtime.preprocess import resize
from escnet_runtime.windows import LogitCanvas, crops, plan_windows

PLAN = plan_windows(12, 6)  # stride 4 cells or 8 pixels, canvas 10 cells or 20 pixels


def test_plan_of_cat_seg() -> None:
    plan = plan_windows(384, 96)
    assert (plan.canvas_pixels, plan.canvas_cells) == (640, 160)
    assert plan.pixel_offsets == ((0, 0), (0, 256), (256, 0), (256, 256))
    assert plan.cell_offsets == ((0, 0), (0, 64), (64, 0), (64, 64))


def test_plan_with_a_fraction_of_pixels_a_cell() -> None:
    plan = plan_windows(336, 96)
    assert (plan.canvas_pixels, plan.canvas_cells) == (560, 160)
    assert plan.pixel_offsets[3] == (224, 224)


@pytest.mark.parametrize(("size", "logits"), [(100, 96), (0, 96), (384, 1), (384, 0)])
def test_impossible_plans_are_refused(size: int, logits: int) -> None:
    with pytest.raises(InputError, match=f"{size} px"):
        plan_windows(size, logits)


def test_crops_are_parts_of_the_canvas_and_the_whole() -> None:
    image = np.random.default_rng(0).integers(0, 256, (31, 57, 3), dtype=np.uint8)
    parts = crops(image, PLAN)
    assert [p.shape for p in parts] == [(12, 12, 3)] * 5
    assert all(p.flags.c_contiguous for p in parts)
    canvas = np.zeros((20, 20, 3), np.uint8)
    for part, (y, x) in zip(parts, PLAN.pixel_offsets, strict=False):
        canvas[y : y + 12, x : x + 12] = part
    np.testing.assert_array_equal(canvas, resize(image, 20, 20))
    np.testing.assert_array_equal(parts[4], resize(image, 12, 12))


def filled(values: list[np.ndarray], chunk: int) -> np.ndarray:
    n = values[0].shape[0]
    canvas = LogitCanvas(PLAN, n)
    parts = [slice(a, min(a + chunk, n)) for a in range(0, n, chunk)]
    for part in parts:
        for window, logits in enumerate(values):
            canvas.add(window, part, logits[part])
    return np.concatenate([canvas.chunk(part) for part in parts])


def test_windows_are_averaged_where_they_overlap() -> None:
    values = [np.full((1, 6, 6), v, np.float32) for v in (2, 4, 8, 16, 100)]
    joined = filled(values, 1)[0]
    assert joined.shape == (10, 10)
    assert joined[0, 0] == (2 + 100) / 2
    assert joined[0, 4] == (3 + 100) / 2
    assert joined[9, 4] == (12 + 100) / 2
    assert joined[5, 5] == (7.5 + 100) / 2
    assert joined[9, 9] == (16 + 100) / 2


def test_windows_of_one_field_give_that_field() -> None:
    # A linear ramp over the canvas is what every window and the enlarged whole agree on.
    y, x = np.mgrid[:10, :10] + 0.5
    field = (3 * x - 2 * y).astype(np.float32)
    values = [field[None, a : a + 6, b : b + 6] for a, b in PLAN.cell_offsets]
    whole_y, whole_x = (np.mgrid[:6, :6] + 0.5) * 10 / 6
    values.append((3 * whole_x - 2 * whole_y).astype(np.float32)[None])
    joined = filled(values, 1)[0]
    inner = np.s_[1:-1, 1:-1]  # past the whole image's outermost cells it is held constant
    np.testing.assert_allclose(joined[inner], field[inner], rtol=1e-5, atol=1e-5)


def test_chunks_do_not_change_the_result() -> None:
    rng = np.random.default_rng(2)
    values = [rng.normal(size=(7, 6, 6)).astype(np.float32) for _ in range(5)]
    np.testing.assert_array_equal(filled(values, 7), filled(values, 3))


def test_misuse_is_refused() -> None:
    canvas = LogitCanvas(PLAN, 4)
    logits = np.zeros((2, 6, 6), np.float32)
    canvas.add(0, slice(0, 2), logits)
    with pytest.raises(InputError, match="second time"):
        canvas.add(0, slice(1, 3), logits)
    with pytest.raises(InputError, match="expected 0 to 4"):
        canvas.add(5, slice(0, 2), logits)
    with pytest.raises(InputError, match=r"expected float32 \[1, 6, 6\]"):
        canvas.add(0, slice(3, 5), logits)
    with pytest.raises(InputError, match="float64"):
        canvas.add(1, slice(0, 2), logits.astype(np.float64))
    with pytest.raises(InputError, match="crop 1 of 5 has not been added for category 0"):
        canvas.chunk(slice(0, 2))
