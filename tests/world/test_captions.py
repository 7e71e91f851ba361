"""Captioned crops: only what training may see, and only what is there."""

from functools import cache

import numpy as np
import pytest

from escnet_runtime.errors import InputError
from escnet_runtime.world import CaptionedCrop, caption_crops, vocabulary
from escnet_runtime.world.captions import CAPTION_TEMPLATES, PROMPT_TEMPLATE
from escnet_runtime.world.cast import draw_cast
from escnet_runtime.world.fields import stream
from escnet_runtime.world.scene import compose
from escnet_runtime.world.words import COLOURS, SHAPES, STUFF, TEXTURES


@cache
def crops() -> tuple[CaptionedCrop, ...]:
    return tuple(crop for seed in range(30) for crop in caption_crops(seed))


def test_captions_speak_of_what_is_there() -> None:
    training = set(vocabulary("train"))
    for crop in crops():
        assert 1 <= len(crop.captions) == len(crop.spoken) == len(set(crop.spoken))
        assert set(crop.spoken) <= set(crop.seen) <= training


def test_a_caption_has_its_name_and_a_surface_at_most() -> None:
    """So none of them has a held-out composition in it."""
    words = {*COLOURS, *TEXTURES, *SHAPES, *(word for name in STUFF for word in name.split())}
    placed = 0
    for crop in crops():
        for caption, name in zip(crop.captions, crop.spoken, strict=True):
            before, found, after = f" {caption} ".partition(f" {name} ")
            assert found, caption
            surfaces = [one for one in STUFF if one != name and f" {one} " in f" {after}"]
            for one in surfaces:
                after = after.replace(one, "")
            assert len(surfaces) <= 1
            assert set(surfaces) <= set(crop.seen)
            assert not {*before.split(), *after.split()} & words, caption
            placed += len(surfaces)
    assert placed


def test_the_same_can_be_said_of_something_else() -> None:
    for crop in crops():
        assert len(crop.wordings) == len(crop.spoken)
        for caption, name, wording in zip(crop.captions, crop.spoken, crop.wordings, strict=True):
            assert wording.about(name) == caption
            other = wording.about("orange star")
            assert other.replace("orange star", name).replace("an ", "a ") == caption.replace(
                "an ", "a "
            )


def test_a_region_is_what_its_caption_is_about() -> None:
    for crop in crops():
        assert crop.regions.shape == crop.image.shape[:2]
        assert crop.regions.dtype == np.int8
        assert {*np.unique(crop.regions).tolist()} - {-1} == {*range(len(crop.spoken))}
        assert (crop.regions == -1).any() or set(crop.spoken) == set(crop.seen)
    # A crop of a whole scene says it of the scene's own labels.
    (whole,) = caption_crops(3, count=1, side=128)
    rng = stream("captions", 3, 128, 128)
    scene = compose(rng, draw_cast(rng, 3, "train", (1, 4)), size=128, fewest=1)
    for index, name in enumerate(whole.spoken):
        want = scene.labels == scene.names.index(name)
        assert np.array_equal(whole.regions == index, want)


def test_articles_and_templates() -> None:
    captions = [caption for crop in crops() for caption in crop.captions]
    assert not any(" a orange" in f" {caption}" for caption in captions if "A photo" not in caption)
    assert any("an orange" in caption for caption in captions)
    before, after = PROMPT_TEMPLATE.split("{}")
    own = [text for text in captions if text.startswith(before) and text.endswith(after)]
    assert 0.15 < len(own) / len(captions) < 0.35
    for template in CAPTION_TEMPLATES:
        before, after = template.split("{}")
        assert any(text.startswith(before) and text.endswith(after) for text in captions)


def test_crops_lie_inside_their_scene_and_reach_its_border() -> None:
    places = [(crop.left, crop.top) for crop in crops()]
    assert all(0 <= place <= 64 for pair in places for place in pair)
    assert any(0 in pair for pair in places)
    assert any(64 in pair for pair in places)
    assert all(crop.image.shape == (64, 64, 3) for crop in crops())
    assert all(crop.image.dtype == np.uint8 for crop in crops())


def test_some_crops_show_a_surface_alone() -> None:
    alone = [crop for crop in crops() if set(crop.seen) <= set(STUFF)]
    assert 0.01 < len(alone) / len(crops()) < 0.3


def test_a_crop_as_large_as_the_scene_is_the_scene() -> None:
    whole = caption_crops(3, count=2, side=128)
    assert [(crop.left, crop.top) for crop in whole] == [(0, 0), (0, 0)]
    np.testing.assert_array_equal(whole[0].image, whole[1].image)


@pytest.mark.parametrize(("side", "size"), [(1, 64), (48, 96), (200, 256)])
def test_sizes(side: int, size: int) -> None:
    for crop in caption_crops(2, side=side, size=size):
        assert crop.image.shape == (side, side, 3)
        assert set(crop.spoken) <= set(crop.seen)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"seed": -1}, "got seed -1"),
        ({"side": 129}, "got crops of 129 pixels a side; expected 1 to 128"),
        ({"side": 0}, "got crops of 0 pixels"),
        ({"count": 0}, "got 0 crops; expected at least 1"),
        ({"size": 2000}, "got size 2000"),
    ],
)
def test_arguments_out_of_range_are_refused(words: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        caption_crops(**{"seed": 0, **words})
