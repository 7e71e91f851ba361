"""The confusion counter against a count in plain Python."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from escnet_runtime.confusion import MATRIX_LIMIT, ConfusionCounter, ignore_index
from escnet_runtime.errors import InputError

_Map = NDArray[np.uint8] | NDArray[np.uint16]


def plain_scores(
    images: list[tuple[_Map, _Map]], classes: int
) -> tuple[float | None, float | None, list[float | None]]:
    """mIoU, pixel accuracy and IoU by the definition, pixel by pixel."""
    pairs: Counter[tuple[int, int]] = Counter()
    for prediction, truth in images:
        for guess, actual in zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True):
            if actual != ignore_index(truth):
                pairs[actual, guess] += 1
    iou: list[float | None] = []
    for index in range(classes):
        right = pairs[index, index]
        missed = sum(n for (actual, guess), n in pairs.items() if actual == index != guess)
        wrong = sum(n for (actual, guess), n in pairs.items() if guess == index != actual)
        there = right + missed
        iou.append(right / (right + missed + wrong) if there else None)
    known = [value for value in iou if value is not None]
    total = sum(pairs.values())
    right = sum(n for (actual, guess), n in pairs.items() if actual == guess)
    return (sum(known) / len(known) if known else None, right / total if total else None, iou)


@st.composite
def label_maps(draw: st.DrawFn) -> tuple[int, list[tuple[_Map, _Map]]]:
    """Classes, and a few images of predictions and labels, some of them not labelled."""
    classes = draw(st.integers(1, 6))
    wide = draw(st.booleans())
    images: list[tuple[_Map, _Map]] = []
    for _ in range(draw(st.integers(0, 3))):
        shape = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
        seed = draw(st.integers(0, 2**32 - 1))
        random = np.random.default_rng(seed)
        drawn = random.integers(0, classes, shape)
        truth: _Map = drawn.astype(np.uint16) if wide else drawn.astype(np.uint8)
        truth[random.random(shape) < 0.3] = 65_535 if wide else 255
        images.append((random.integers(0, classes, shape).astype(np.uint8), truth))
    return classes, images


@given(label_maps(), st.integers(0, 4))
def test_further_categories_are_never_right_and_have_no_figure(
    case: tuple[int, list[tuple[_Map, _Map]]], extra: int
) -> None:
    classes, images = case
    random = np.random.default_rng(classes + extra)
    counter = ConfusionCounter(classes, extra=extra)
    mixed: list[tuple[_Map, _Map]] = []
    for prediction, truth in images:
        other = random.integers(0, classes + extra, prediction.shape).astype(np.uint8)
        mixed.append((other, truth))
        counter.add(other, truth)
    scores = counter.scores()
    miou, accuracy, iou = plain_scores(mixed, classes)
    assert list(scores.iou) == iou
    assert scores.miou == pytest.approx(miou)
    assert scores.pixel_accuracy == pytest.approx(accuracy)
    assert scores == counter.scores(range(classes))


def test_mistakes_for_further_categories_have_the_indices_behind_the_classes() -> None:
    counter = ConfusionCounter(2, extra=2)
    counter.add(np.array([[3, 3, 0, 2]], np.uint8), np.array([[0, 0, 0, 1]], np.uint8))
    matrix = counter.matrix
    assert matrix is not None
    assert matrix.tolist() == [[1, 0, 0, 2], [0, 0, 1, 0]]
    found = counter.worst()
    assert found is not None
    assert [(one.truth, one.prediction, one.pixels) for one in found] == [(0, 3, 2), (1, 2, 1)]
    assert counter.scores().iou == (1 / 3, 0.0)
    with pytest.raises(InputError, match="predicted class 4; expected 0 to 3 for 4 categories"):
        counter.add(np.full((1, 1), 4, np.uint8), np.zeros((1, 1), np.uint8))
    with pytest.raises(InputError, match="the label 2; expected 0 to 1 for 2 classes"):
        counter.add(np.zeros((1, 1), np.uint8), np.full((1, 1), 2, np.uint8))
    with pytest.raises(InputError, match="65534 categories beside 2 classes; expected 0 to 65533"):
        ConfusionCounter(2, extra=65_534)


def test_very_many_further_categories_are_counted_without_a_matrix() -> None:
    counter = ConfusionCounter(20, extra=65_515)
    counter.add(np.array([[0, 65_534]], np.uint16), np.array([[0, 0]], np.uint8))
    assert counter.matrix is None
    assert counter.scores().iou[0] == 0.5


@given(label_maps())
def test_scores_are_those_of_a_plain_count(case: tuple[int, list[tuple[_Map, _Map]]]) -> None:
    classes, images = case
    counter = ConfusionCounter(classes)
    for prediction, truth in images:
        counter.add(prediction, truth)
    scores = counter.scores()
    miou, accuracy, iou = plain_scores(images, classes)
    assert list(scores.iou) == iou
    assert scores.miou == pytest.approx(miou)
    assert scores.pixel_accuracy == pytest.approx(accuracy)


def test_a_class_that_is_only_predicted_hurts_the_others_and_is_not_in_the_mean() -> None:
    counter = ConfusionCounter(4)
    counter.add(np.array([[0, 0, 1, 2]], np.uint8), np.array([[0, 0, 1, 1]], np.uint8))
    scores = counter.scores()
    assert scores.iou == (1.0, 0.5, None, None)
    assert scores.miou == 0.75
    assert scores.pixel_accuracy == 0.75
    assert scores.pixels == 4


def test_pixels_without_a_label_count_for_nothing() -> None:
    counter = ConfusionCounter(300)
    truth = np.array([[7, 65_535, 255]], np.uint16)  # in 16 bits, 255 is a class
    counter.add(np.array([[7, 3, 299]], np.uint16), truth)
    scores = counter.scores()
    assert scores.pixels == 2
    assert scores.iou[3] is None
    assert scores.iou[255] == 0.0


def test_without_a_labelled_pixel_there_is_no_figure() -> None:
    counter = ConfusionCounter(2)
    counter.add(np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8))
    scores = counter.scores()
    assert (scores.miou, scores.pixel_accuracy, scores.pixels) == (None, None, 0)


@pytest.mark.parametrize("classes", [MATRIX_LIMIT, MATRIX_LIMIT + 1, 65_535])
def test_very_many_classes_are_counted_without_a_matrix(classes: int) -> None:
    counter = ConfusionCounter(classes)
    truth = np.array([[0, 5, 9, classes - 1]], np.uint16)
    truth[0, 3] = min(classes - 1, 65_534)
    counter.add(np.array([[0, 5, 5, 9]], np.uint16), truth)
    scores = counter.scores()
    assert (scores.iou[0], scores.iou[5], scores.iou[9]) == (1.0, 0.5, 0.0)
    assert scores.miou == pytest.approx(1.5 / 4)
    large = classes > MATRIX_LIMIT
    assert (counter.matrix is None) == large
    assert (counter.worst() is None) == large


def test_matrix_and_commonest_mistakes() -> None:
    counter = ConfusionCounter(3)
    counter.add(np.array([[1, 1, 2, 0, 2]], np.uint8), np.array([[0, 0, 0, 0, 2]], np.uint8))
    matrix = counter.matrix
    assert matrix is not None
    assert matrix.tolist() == [[1, 2, 1], [0, 0, 0], [0, 0, 1]]
    found = counter.worst(most=2)
    assert found is not None
    assert [(one.truth, one.prediction, one.pixels) for one in found] == [(0, 1, 2), (0, 2, 1)]


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), "3×2 .* 2×3 pixels"),
        (np.zeros((1, 1), np.uint8), np.full((1, 1), 4, np.uint8), "the label 4; expected 0 to 3"),
        (np.full((1, 1), 9, np.uint8), np.zeros((1, 1), np.uint8), "predicted class 9"),
        (np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.int64), "int64; expected uint8 or uint16"),
        (np.zeros((1, 1), np.float32), np.zeros((1, 1), np.uint8), "float32"),
    ],
)
def test_what_cannot_be_counted_is_refused_and_changes_nothing(
    prediction: _Map, truth: _Map, message: str
) -> None:
    counter = ConfusionCounter(4)
    with pytest.raises(InputError, match=message):
        counter.add(prediction, truth)
    assert counter.scores().pixels == 0


@pytest.mark.parametrize("classes", [0, 65_536])
def test_numbers_of_classes_are_checked(classes: int) -> None:
    with pytest.raises(InputError, match=f"{classes} classes; expected 1 to 65535"):
        ConfusionCounter(classes)


def test_figures_of_some_classes() -> None:
    """Of a group: its own pixels and its own mean; what is taken for it by others still counts."""
    counter = ConfusionCounter(4)
    truth = np.array([[0, 0, 1, 1, 2, 2, 255]], np.uint8)
    prediction = np.array([[0, 1, 1, 1, 1, 2, 3]], np.uint8)
    counter.add(prediction, truth)
    scores = counter.scores([1, 3])
    assert scores.iou == (0.5, None)
    assert (scores.miou, scores.pixel_accuracy, scores.pixels) == (0.5, 1.0, 2)
    assert counter.scores([2, 0]).iou == (0.5, 0.5)
    assert counter.scores([3]).miou is None
    assert counter.scores([0, 1, 2, 3]) == counter.scores()
