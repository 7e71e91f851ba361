"""The legend of a video stays put: places, colours and size, whatever comes and goes."""

import numpy as np
import pytest

from escnet_runtime import InputError, Segmentation
from escnet_runtime.images import ImageArray
from escnet_runtime.palette import palette
from escnet_runtime.pictures import Labels
from escnet_runtime.video_legend import VideoOverlay

NAMES = ("sky", "road", "car", "tree", "person", "dog")
RATE = 4.0  # a line stays lit for 2 frames


def labels_of(*categories: int, height: int = 240, width: int = 320) -> Labels:
    """Bands of categories from above; each is thinner than the one before."""
    edges = np.cumsum(np.arange(len(categories), 0, -1))
    bands = np.searchsorted(edges * height / edges[-1], np.arange(height), side="right")
    rows = np.array(categories, np.uint8)[bands]
    return np.repeat(rows[:, None], width, axis=1)


def result_of(labels: Labels, names: tuple[str, ...] = NAMES) -> Segmentation:
    image = np.full((*labels.shape, 3), 100, np.uint8)
    confidence = np.ones(labels.shape, np.float16)
    return Segmentation(labels=labels, confidence=confidence, names=names, image=image)


def panel(frame: ImageArray, width: int = 320) -> ImageArray:
    return frame[:, width:]


def boxes(frame: ImageArray, names: tuple[str, ...] = NAMES, width: int = 320) -> dict[int, int]:
    """Row at which the box of each category that is lit begins."""
    found = {}
    side = panel(frame, width)
    for index, colour in enumerate(palette(len(names))):
        # A box is at least 10 px wide: letters have no such run of a colour.
        hits = (side == colour).all(axis=2).sum(axis=1) >= 10
        if hits.any():
            found[index] = int(np.argmax(hits))
    return found


def test_categories_stand_in_the_order_of_their_appearance_and_stay() -> None:
    drawn = VideoOverlay(NAMES, RATE)
    first = boxes(drawn.draw(result_of(labels_of(1, 0))))
    assert [*sorted(first, key=first.__getitem__)] == [1, 0]
    second = boxes(drawn.draw(result_of(labels_of(0, 4, 1))))
    assert second.keys() == {0, 1, 4}
    assert {index: second[index] for index in (0, 1)} == first
    assert second[4] > max(first.values())


def test_what_is_gone_is_pale_after_a_while_and_comes_back_to_its_place() -> None:
    drawn = VideoOverlay(NAMES, RATE)
    there = boxes(drawn.draw(result_of(labels_of(0, 1, 2))))
    gone = [boxes(drawn.draw(result_of(labels_of(0, 1)))) for _ in range(4)]
    assert [2 in one for one in gone] == [True, False, False, False]
    pale = panel(drawn.draw(result_of(labels_of(0, 1))))
    assert (pale[there[2] : there[2] + 10] != 255).any()  # still written
    assert boxes(drawn.draw(result_of(labels_of(1, 0, 2)))) == there


def test_specks_get_no_line() -> None:
    labels = labels_of(0, 1)
    labels[:3, :3] = 5
    frame = VideoOverlay(NAMES, RATE).draw(result_of(labels))
    assert boxes(frame).keys() == {0, 1}


def test_all_frames_have_one_size() -> None:
    drawn = VideoOverlay(NAMES, RATE)
    shapes = {
        drawn.draw(result_of(labels_of(*present))).shape
        for present in ((0,), (1, 2), (5, 4, 3, 2, 1, 0))
    }
    [(height, width, _)] = shapes
    assert height == 240
    assert width > 320
    assert width % 2 == 0
    with pytest.raises(InputError, match="330×240 pixels in a video of 320×240; expected all"):
        drawn.draw(result_of(labels_of(0, height=240, width=330)))
    with pytest.raises(InputError, match="other categories"):
        drawn.draw(result_of(labels_of(0), ("sky",)))


def test_a_long_vocabulary_is_bounded_and_the_rest_summed_up() -> None:
    names = tuple(f"thing {index}" for index in range(200))
    drawn = VideoOverlay(names, RATE)
    frame = drawn.draw(result_of(labels_of(*range(25)), names))
    lit = boxes(frame, names)
    assert 5 <= len(lit) < 25
    assert lit.keys() == set(range(len(lit)))  # the largest come first
    last_line = panel(frame)[max(lit.values()) + 20 :]
    assert (last_line != 255).any()  # "+ n more"
    # They change nothing above.
    again = drawn.draw(result_of(labels_of(*range(24, -1, -1)), names))
    assert boxes(again, names) == lit


def test_more_names_than_are_measured() -> None:
    names = tuple(f"thing {index}" for index in range(70_000 // 2))
    labels = labels_of(3).astype(np.uint16)
    frame = VideoOverlay(names, RATE).draw(result_of(labels, names))
    assert frame.shape[1] > 320


def test_a_wide_video_has_its_legend_below_and_a_small_one_is_enlarged() -> None:
    wide = VideoOverlay(NAMES, RATE).draw(result_of(labels_of(0, 1, height=200, width=640)))
    assert wide.shape[1] == 640
    assert wide.shape[0] > 200
    small = VideoOverlay(NAMES, RATE).draw(result_of(labels_of(0, 1, height=48, width=64)))
    assert small.shape[0] == 240
    assert boxes(small).keys() == {0, 1}


def test_a_note_stands_above_in_every_frame() -> None:
    plain = VideoOverlay(NAMES, RATE)
    noted = VideoOverlay(NAMES, RATE, note="untrained weights: the masks mean nothing")
    result = result_of(labels_of(0, 1))
    without, with_note = boxes(plain.draw(result)), boxes(noted.draw(result))
    assert all(with_note[index] > without[index] for index in (0, 1))
    assert boxes(noted.draw(result)) == with_note
