"""NV12 becomes the colours that the standards say."""

from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from escnet_runtime.errors import ImageError, InputError
from escnet_runtime.nv12 import YuvEncoding, rgb_of_nv12

Floats = npt.NDArray[np.float64]

LUMA = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}
ENCODINGS = [
    YuvEncoding(matrix="bt601", range="limited"),
    YuvEncoding(matrix="bt601", range="full"),
    YuvEncoding(matrix="bt709", range="limited"),
    YuvEncoding(matrix="bt709", range="full"),
]


def encoded(rgb: Floats, encoding: YuvEncoding) -> Floats:
    """The standards' way there: RGB [..., 3] in 0..1 as (Y, Cb, Cr) levels, not rounded."""
    kr, kb = LUMA[encoding.matrix]
    y = rgb @ np.array([kr, 1 - kr - kb, kb])
    cb, cr = (rgb[..., 2] - y) / (2 - 2 * kb), (rgb[..., 0] - y) / (2 - 2 * kr)
    if encoding.range == "full":
        return np.stack([255 * y, 255 * cb + 128, 255 * cr + 128], axis=-1)
    return np.stack([219 * y + 16, 224 * cb + 128, 224 * cr + 128], axis=-1)


def decoded(yuv: npt.NDArray[np.uint8], encoding: YuvEncoding) -> npt.NDArray[np.uint8]:
    """Colours [n, 3], each as the 2×2 pixels of one chroma sample."""
    luma = yuv[None, :, 0].repeat(2, axis=0).repeat(2, axis=1)
    rgb = rgb_of_nv12(luma, yuv[None, :, 1:], encoding)
    np.testing.assert_array_equal(rgb[:, ::2], rgb[:, 1::2])
    np.testing.assert_array_equal(rgb[0], rgb[1])
    return rgb[0, ::2]


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_colours_come_back(encoding: YuvEncoding) -> None:
    """Half a level of each of (Y, Cb, Cr) is at most 1.7 levels of a channel, and rounding."""
    colours = np.array(list(product(range(0, 256, 15), repeat=3)), np.uint8)
    yuv = encoded(colours / 255, encoding).round().clip(0, 255).astype(np.uint8)
    difference = np.abs(decoded(yuv, encoding).astype(int) - colours)
    assert difference.max() <= 2


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_any_numbers_are_decoded_as_the_formula_says(encoding: YuvEncoding) -> None:
    """Also those no colour has: clamped."""
    matrix = np.stack([encoded(axis, encoding) for axis in np.eye(3)], axis=1)
    black = encoded(np.zeros(3), encoding)
    yuv = np.random.default_rng(0).integers(0, 256, (200_000, 3), dtype=np.uint8)
    exact = 255 * np.linalg.solve(matrix - black[:, None], (yuv - black).T).T
    got = decoded(yuv, encoding)
    assert np.abs(got - exact.clip(0, 255)).max() <= 0.501


def test_black_white_and_primaries() -> None:
    levels = np.array([[16, 128, 128], [235, 128, 128], [81, 90, 240], [0, 128, 128]], np.uint8)
    got = decoded(levels, YuvEncoding(matrix="bt601", range="limited"))
    assert got.tolist() == [[0, 0, 0], [255, 255, 255], [254, 0, 0], [0, 0, 0]]


def test_odd_sizes_use_a_part_of_the_last_chroma() -> None:
    encoding = ENCODINGS[0]
    random = np.random.default_rng(1)
    luma = random.integers(0, 256, (6, 8), dtype=np.uint8)
    chroma = random.integers(0, 256, (3, 4, 2), dtype=np.uint8)
    whole = rgb_of_nv12(luma, chroma, encoding)
    np.testing.assert_array_equal(rgb_of_nv12(luma[:5, :7], chroma, encoding), whole[:5, :7])


@pytest.mark.parametrize(
    ("luma", "chroma"),
    [
        (np.zeros((4, 4), np.uint8), np.zeros((2, 2), np.uint8)),
        (np.zeros((4, 4), np.uint8), np.zeros((2, 3, 2), np.uint8)),
        (np.zeros((5, 4), np.uint8), np.zeros((2, 2, 2), np.uint8)),
        (np.zeros((0, 4), np.uint8), np.zeros((0, 2, 2), np.uint8)),
        (np.zeros((4, 4), np.uint8), np.zeros((2, 2, 2), np.int8)),
        (np.zeros((4, 4, 1), np.uint8), np.zeros((2, 2, 2), np.uint8)),
    ],
)
def test_other_planes_are_refused(luma: Any, chroma: Any) -> None:
    with pytest.raises(ImageError, match=r"expected uint8 \[H,W\] and uint8 \[ceil"):
        rgb_of_nv12(luma, chroma, ENCODINGS[0])


@pytest.mark.parametrize("change", [{"matrix": "bt2020"}, {"range": "tv"}])
def test_unknown_encodings_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected one of bt601, bt709 and one of limited, full"):
        YuvEncoding(**{"matrix": "bt601", "range": "full", **change})
