"""Masks without classes: prompts lie inside, regions do not overlap, nothing wraps around."""

import numpy as np
import pytest

from escnet_runtime.errors import InputError
from escnet_runtime.world import prompt_sample
from escnet_runtime.world.prompts import Region, _moved


@pytest.mark.parametrize("region", ["object", "category"])
def test_points_are_middles_of_pixels_of_their_mask(region: Region) -> None:
    for seed in range(10):
        sample = prompt_sample(seed, region=region, points=5)
        count = len(sample.masks)
        assert sample.masks.shape == (count, 128, 128)
        assert sample.points.shape == (count, 5, 2)
        assert sample.points.dtype == np.float32
        assert sample.coarse is None
        assert count >= 1
        assert sample.masks.sum(0).max() == 1
        assert sample.masks.any((1, 2)).all()
        assert (sample.points % 1 == 0.5).all()
        columns, rows = np.floor(sample.points).astype(int).transpose(2, 0, 1)
        assert sample.masks[np.arange(count)[:, None], rows, columns].all()


def test_picture_and_masks_do_not_depend_on_the_prompts() -> None:
    one, other = prompt_sample(4), prompt_sample(4, points=7, coarse=True)
    np.testing.assert_array_equal(one.image, other.image)
    np.testing.assert_array_equal(one.masks, other.masks)


def test_categories_join_objects_of_one_name() -> None:
    joined = 0
    for seed in range(12):
        objects = prompt_sample(seed, region="object").masks
        categories = prompt_sample(seed, region="category").masks
        joined += len(objects) - len(categories)
        for mask in objects:  # what is large enough alone is part of something larger
            assert any((mask & ~other).sum() == 0 for other in categories)
    assert joined > 0


def test_poor_guesses_are_where_the_masks_are() -> None:
    for seed in range(6):
        sample = prompt_sample(seed, coarse=True)
        guess = sample.coarse
        assert guess is not None
        assert guess.shape == sample.masks.shape
        assert guess.dtype == np.float32
        assert guess.min() >= 0
        assert guess.max() <= 1
        for mask, one in zip(sample.masks, guess, strict=True):
            assert one[mask].mean() > one[~mask].mean() + 0.1


@pytest.mark.parametrize(("down", "right"), [(0, 3), (0, -3), (2, 0), (-2, 1), (-5, -8), (0, 0)])
def test_what_leaves_the_picture_does_not_come_back(down: int, right: int) -> None:
    mask = np.random.default_rng(0).random((20, 20)) < 0.5
    moved = _moved(mask, down, right)
    for row in range(20):
        for column in range(20):
            y, x = row - down, column - right
            inside = 0 <= y < 20 and 0 <= x < 20
            assert moved[row, column] == (inside and mask[y, x])


@pytest.mark.parametrize("size", [64, 100, 256])
def test_sizes(size: int) -> None:
    sample = prompt_sample(1, size=size, points=2, coarse=True)
    assert sample.image.shape == (size, size, 3)
    assert sample.coarse is not None
    assert sample.masks.shape == sample.coarse.shape


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"seed": -2}, "got seed -2"),
        ({"size": 10}, "got size 10"),
        ({"objects": (3, 1)}, "got 3 to 1 objects"),
        ({"points": 0}, "got 0 points for each mask; expected at least 1"),
        ({"region": "instance"}, "got region 'instance'; expected object or category"),
    ],
)
def test_arguments_out_of_range_are_refused(words: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prompt_sample(**{"seed": 0, **words})  # type: ignore[arg-type]
