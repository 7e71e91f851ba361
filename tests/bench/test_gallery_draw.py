"""The gallery's drawing: arrays in, pictures out."""

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from escnet_bench.gallery.panels import (
    POINT,
    UNLABELLED,
    WRONG,
    draw_prompts,
    error_panel,
    heat_map,
    label_panel,
    mask_panel,
    viridis,
)
from escnet_bench.gallery.sheet import WIDTH, draw_sheet
from escnet_bench.gallery.trace import CategoryTrace, ImageTrace
from escnet_runtime.confusion import ConfusionCounter, Labels, ignore_index
from escnet_runtime.palette import oklab, palette
from escnet_runtime.ppg import PpgConstants, Prompts, pseudo_prompts

CAPTION = "tiny (bundle, fp16) on a test"


def prompts_of(regions: NDArray[np.int32], points: list[tuple[int, int]]) -> Prompts:
    """Prompts of one category with five points at most."""
    made = np.zeros((1, 5, 2), np.float32)
    labels = np.full((1, 5), -1, np.int32)
    for index, point in enumerate(points):
        made[0, index], labels[0, index] = point, 1
    return Prompts(
        points=made,
        point_labels=labels,
        regions=regions[None],
        probabilities=np.ones((1, *regions.shape), np.float32),
    )


def label_map(labels: NDArray[np.int64], classes: int) -> Labels:
    """Labels in a type that has a value left for "not labelled"."""
    return labels.astype(np.uint8) if classes <= 255 else labels.astype(np.uint16)


def made_trace(
    height: int, width: int, *, classes: int = 3, blocks: int = 2, labelled: bool = True
) -> ImageTrace:
    """A trace of noise; of the ground truth, a corner is not labelled."""
    rng = np.random.Generator(np.random.PCG64(height * width + classes))
    truth = label_map(rng.integers(0, min(classes, 2), (height, width)), classes)
    truth[0, 0] = ignore_index(truth)
    if not labelled:
        truth[:] = ignore_index(truth)
    prediction = label_map(rng.integers(0, classes, (height, width)), classes)
    counter = ConfusionCounter(classes)
    counter.add(prediction, truth)
    figures = counter.scores()
    categories = []
    for index in np.flatnonzero([iou is not None for iou in figures.iou]).tolist():
        scores = rng.standard_normal((blocks + 1, 6, 6)).astype(np.float32)
        each = [pseudo_prompts(scores[b : b + 1], PpgConstants()) for b in range(blocks)]
        categories.append(
            CategoryTrace(
                index=index,
                pixels=int((truth == index).sum()),
                iou=figures.iou[index] or 0.0,
                scores=scores,
                prompts=tuple(each),
                logits=rng.standard_normal((24, 24)).astype(np.float32),
            )
        )
    return ImageTrace(
        name="scene",
        image=rng.integers(0, 256, (height, width, 3)).astype(np.uint8),
        truth=truth,
        prediction=prediction,
        classes=tuple(f"class {index}" for index in range(classes)),
        scores=figures,
        categories=tuple(categories),
    )


def pixel(picture: Image.Image, x: int, y: int) -> tuple[int, ...]:
    return tuple(np.asarray(picture)[y, x].tolist())


def test_the_colours_of_a_heat_map_grow_lighter_evenly() -> None:
    colours = viridis(np.linspace(0, 1, 50))
    assert tuple(colours[0]) == (0x44, 0x01, 0x54)
    assert tuple(colours[-1]) == (0xFD, 0xE7, 0x25)
    steps = np.diff(oklab(colours)[:, 0])
    assert (steps > 0).all()
    assert steps.max() < 2 * steps.mean()
    outside = viridis(np.array([-np.inf, -1, 2, np.inf, np.nan]))
    assert outside.tolist() == [*colours[[0, 0, -1, -1]].tolist(), list(UNLABELLED)]


def test_a_heat_map_has_the_grids_cells() -> None:
    values = np.array([[0, 1, np.nan], [0.5, 2, -1]], np.float32)
    drawn = np.asarray(heat_map(values, (30, 20), low=0, high=1))
    assert drawn.shape == (20, 30, 3)
    for row, column in np.ndindex(2, 3):
        cell = drawn[10 * row : 10 * row + 10, 10 * column : 10 * column + 10]
        assert (cell == viridis(values[row, column])).all()
    flat = heat_map(np.full((2, 2), 7, np.float32), (4, 4), low=7, high=7)
    assert pixel(flat, 0, 0) == tuple(viridis(np.array(0.5)).tolist())


def test_points_are_dots_in_the_middle_of_their_cells() -> None:
    panel = Image.new("RGB", (160, 80), (1, 2, 3))
    regions = np.full((4, 8), -1, np.int32)
    drawn = draw_prompts(panel, prompts_of(regions, [(0, 0), (6, 2)]))
    assert pixel(drawn, 10, 10) == pixel(drawn, 130, 50) == POINT
    pixels = np.asarray(drawn)
    assert pixels.shape == (80, 160, 3)
    near = np.zeros((80, 160), bool)
    near[:20, :20] = near[40:60, 120:140] = True
    assert (pixels[~near] == (1, 2, 3)).all()
    assert {(1, 2, 3), POINT, (0, 0, 0)} == {tuple(one) for one in pixels[near].tolist()}
    assert (np.asarray(panel) == (1, 2, 3)).all()


def test_unused_points_are_left_out() -> None:
    panel = Image.new("RGB", (80, 80), (1, 2, 3))
    drawn = draw_prompts(panel, prompts_of(np.full((4, 4), -1, np.int32), []))
    assert drawn.tobytes() == panel.tobytes()


def test_regions_are_outlined_where_they_end() -> None:
    regions = np.array([[0, 0, 1, -1]] * 2, np.int32)
    drawn = np.asarray(draw_prompts(Image.new("RGB", (40, 20)), prompts_of(regions, [])))
    outlined = (drawn != 0).any((0, 2))
    assert np.flatnonzero(outlined).tolist() == [19, 20, 29, 30]


def test_labels_have_their_colours_and_grey_where_there_is_none() -> None:
    truth = np.array([[0, 1], [2, 255]], np.uint8)
    drawn = np.asarray(label_panel(truth, 3, (4, 4), 255))
    assert drawn[::2, ::2].tolist() == [
        palette(3)[:2].tolist(),
        [palette(3)[2].tolist(), list(UNLABELLED)],
    ]
    # A prediction has a label everywhere: of 256 classes, 255 is one.
    assert pixel(label_panel(truth, 256, (4, 4)), 3, 3) == tuple(palette(256)[255].tolist())
    wide = np.array([[846, 65535]], np.uint16)
    drawn = np.asarray(label_panel(wide, 847, (2, 1), 65535))
    assert drawn[0].tolist() == [palette(847)[846].tolist(), list(UNLABELLED)]


def test_errors_are_red_on_the_dimmed_photo() -> None:
    image = np.full((2, 2, 3), 200, np.uint8)
    truth = np.array([[0, 1], [255, 1]], np.uint8)
    prediction = np.array([[0, 0], [0, 1]], np.uint8)
    panel = error_panel(image, truth, prediction, (2, 2))
    assert pixel(panel, 1, 0) == WRONG
    assert pixel(panel, 0, 1) == UNLABELLED
    assert pixel(panel, 0, 0) == pixel(panel, 1, 1) == (80, 80, 80)
    mask = mask_panel(truth, 1, (2, 2))
    assert pixel(mask, 1, 0) == pixel(mask, 1, 1) > pixel(mask, 0, 1) > pixel(mask, 0, 0)


@pytest.mark.parametrize(
    ("height", "width", "classes", "blocks"),
    [(40, 60, 3, 4), (1, 1, 2, 1), (5, 700, 256, 8), (700, 5, 847, 2), (30, 30, 3, 0)],
)
def test_a_sheet_of_any_image_and_number_of_classes(
    height: int, width: int, classes: int, blocks: int
) -> None:
    trace = made_trace(height, width, classes=classes, blocks=blocks)
    sheet = draw_sheet(trace, caption=CAPTION, note="a note")
    assert sheet.width == WIDTH
    assert sheet.height < 2 * WIDTH
    assert (np.asarray(sheet)[:, -12:] == 255).all()  # nothing runs over the edge
    without = dataclasses.replace(trace, categories=())
    assert draw_sheet(without, caption=CAPTION).height < sheet.height


def test_a_sheet_without_a_labelled_pixel() -> None:
    trace = made_trace(20, 30, labelled=False)
    assert trace.scores.miou is None
    assert draw_sheet(trace, caption=CAPTION).width == WIDTH


def test_no_name_breaks_a_sheet() -> None:
    plain = made_trace(20, 30)
    odd = dataclasses.replace(plain, name="x\n" * 90, classes=("\u202e\x00", "猫" * 90, "\ud800"))
    assert draw_sheet(odd, caption=CAPTION).size == draw_sheet(plain, caption=CAPTION).size
