import math

import numpy as np
import pytest
from PIL import Image

from escnet_runtime.errors import ImageError, InputError
from escnet_runtime.preprocess import Preprocessing, preprocess, resize

MEAN, STD = (0.48, 0.45, 0.40), (0.26, 0.25, 0.27)


def reference_axis(pixels: np.ndarray, size: int) -> np.ndarray:
    """The module's description of one pass, word by word: int [n,k] to [size,k]."""
    n = len(pixels)
    scale = n / size
    stretch = max(1.0, scale)
    result = np.empty((size, pixels.shape[1]), np.int64)
    for i in range(size):
        centre = (i + 0.5) * scale
        low = max(0, int(centre - stretch + 0.5))
        high = min(n, int(centre + stretch + 0.5))
        weights = [max(0.0, 1 - abs((j + 0.5 - centre) / stretch)) for j in range(low, high)]
        units = [math.floor(w / sum(weights) * 2**22 + 0.5) for w in weights]
        total = sum(u * pixels[j] for u, j in zip(units, range(low, high), strict=True))
        result[i] = np.clip((total + 2**21) >> 22, 0, 255)
    return result


def reference(image: np.ndarray, height: int, width: int) -> np.ndarray:
    h, w, _ = image.shape
    if h * width > w * height:
        return reference(image.transpose(1, 0, 2), width, height).transpose(1, 0, 2)
    columns = image.astype(np.int64).transpose(1, 0, 2).reshape(w, -1)
    wide = reference_axis(columns, width).reshape(width, h, 3).transpose(1, 0, 2)
    return reference_axis(wide.reshape(h, -1), height).reshape(height, width, 3)


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1),
        (16, 16),
        (7, 100),
        (100, 7),
        (16, 33),
        (17, 16),
        (1, 300),
        (64, 48),
        (9, 5),
        (40, 30),
    ],
)
def test_resize_is_what_the_module_describes(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resize(image, 16, 12), reference(image, 16, 12))


def test_resize_is_pillows_within_one_step() -> None:
    rng = np.random.default_rng(3)
    for _ in range(30):
        h, w, height, width = (int(v) for v in rng.integers(1, 60, 4))
        image = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
        whole = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(
            resize(image, height, width).astype(int), np.asarray(whole), atol=1
        )


def test_preprocess_normalises_each_channel() -> None:
    image = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    result = preprocess(image, Preprocessing(size=8, mean=MEAN, std=STD))
    assert result.shape == (1, 3, 8, 8)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    for c in range(3):
        expected = (image[:, :, c] / 255 - MEAN[c]) / STD[c]
        np.testing.assert_array_equal(result[0, c], expected.astype(np.float32))


def test_preprocess_squeezes_the_whole_image() -> None:
    image = np.zeros((10, 200, 3), np.uint8)
    image[:, 100:] = 255
    result = preprocess(image, Preprocessing(size=6, mean=(0, 0, 0), std=(1, 1, 1)))
    assert result[0, :, :, :2].max() == 0
    assert result[0, :, :, 4:].min() == 1


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)],
)
def test_other_images_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"expected uint8 \[H,W,3\]"):
        resize(image, 4, 4)


@pytest.mark.parametrize(
    "change", [{"size": 0}, {"std": (1, 0, 1)}, {"std": (1, 1)}, {"mean": (1, 1, 1, 1)}]
)
def test_impossible_specifications_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(InputError, match="got"):
        Preprocessing(**({"size": 8, "mean": MEAN, "std": STD} | change))  # type: ignore[arg-type]
