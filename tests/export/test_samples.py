from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from escnet_export.samples import SAMPLE_CATEGORIES, sample_photo, sample_photos
from escnet_runtime.errors import InputError
from escnet_runtime.images import ImageArray

_Floats = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def photos() -> list[ImageArray]:
    return sample_photos(8)


def grey(photo: ImageArray) -> _Floats:
    values: _Floats = photo.astype(np.float64).mean(axis=2)
    return values


def test_a_photo_is_an_image_of_the_size_asked_for() -> None:
    photo = sample_photo(3, height=96, width=170)
    assert photo.shape == (96, 170, 3)
    assert photo.dtype == np.uint8
    assert photo.flags.c_contiguous


def test_a_seed_gives_the_same_photo_again() -> None:
    first, second = (sample_photo(5, height=90, width=120) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_photos_are_those_of_the_first_seeds(photos: list[ImageArray]) -> None:
    assert [photo.shape for photo in photos] == [(480, 640, 3)] * 8
    np.testing.assert_array_equal(photos[2], sample_photo(2))
    assert sample_photos(0) == []


def test_seeds_give_different_scenes(photos: list[ImageArray]) -> None:
    """Not the same scene with other noise: coarse pictures differ too."""
    coarse = [p.reshape(8, 60, 8, 80, 3).mean(axis=(1, 3)) for p in photos]
    for i, one in enumerate(coarse):
        for other in coarse[:i]:
            assert np.abs(one - other).mean() > 12


def test_spectra_fall_as_those_of_photos_do(photos: list[ImageArray]) -> None:
    """Power of natural images falls with frequency to about the second power."""
    window = np.hanning(480)[:, None] * np.hanning(640)
    y, x = np.fft.fftfreq(480)[:, None], np.fft.rfftfreq(640)
    frequency = np.hypot(y, x)
    bands = np.geomspace(0.01, 0.3, 9)
    for photo in photos:
        values = grey(photo)
        power = np.abs(np.fft.rfft2((values - values.mean()) * window)) ** 2
        means = [
            power[(frequency >= low) & (frequency < high)].mean() for low, high in pairwise(bands)
        ]
        slope = np.polyfit(np.log(np.sqrt(bands[:-1] * bands[1:])), np.log(means), 1)[0]
        assert -3.5 < slope < -1.3


def test_light_and_contrast_are_those_of_photos(photos: list[ImageArray]) -> None:
    for photo in photos:
        assert 45 < photo.mean() < 200
        assert grey(photo).std() > 20
        assert np.mean((photo == 0) | (photo == 255)) < 0.12
        assert len(np.unique(photo @ np.array([65536, 256, 1]))) > 10_000


def test_day_scenes_have_sky_above_and_land_below(photos: list[ImageArray]) -> None:
    top, bottom = photos[0][:60].mean(axis=(0, 1)), photos[2][-60:].mean(axis=(0, 1))
    assert top[2] > top[0] + 20  # blue sky
    assert bottom[1] > bottom[2] + 20  # green meadow


@pytest.mark.parametrize("size", [(64, 64), (64, 400), (301, 97)])
def test_odd_sizes_work(size: tuple[int, int]) -> None:
    for seed in range(4):
        photo = sample_photo(seed, height=size[0], width=size[1])
        assert photo.shape == (*size, 3)
        assert grey(photo).std() > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed -1"),
        ({"height": 63}, "height 63"),
        ({"width": 5000}, "width 5000"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sample_photo(**arguments)


def test_categories_are_twelve_different_words() -> None:
    assert len(set(SAMPLE_CATEGORIES)) == len(SAMPLE_CATEGORIES) == 12
    assert all(name.isalpha() and name.islower() for name in SAMPLE_CATEGORIES)
