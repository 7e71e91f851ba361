"""Frames in NV12: planes in any form, and the colours they stand for."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from escnet_runtime import ImageError, InputError, Nv12Frame, YuvEncoding
from escnet_runtime.nv12 import rgb_of_nv12

FULL = YuvEncoding(matrix="bt601", range="full")
Plane = npt.NDArray[np.uint8]


def planes(height: int, width: int, pitch: int = 0) -> tuple[Plane, Plane]:
    """Random luma [H,P] and chroma [ceil(H/2),Q]."""
    random = np.random.default_rng(height * width)
    wide = -(-width // 2) * 2
    luma = random.integers(0, 256, (height, pitch or width), np.uint8)
    return luma, random.integers(0, 256, (-(-height // 2), max(pitch, wide)), np.uint8)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 6), (4, 7), (5, 7), (1, 1)])
def test_a_frame_has_the_colours_of_its_planes(height: int, width: int) -> None:
    luma, chroma = planes(height, width)
    pairs = chroma.reshape(len(chroma), -1, 2)
    want = rgb_of_nv12(luma, pairs, FULL)
    for form in (chroma, pairs):
        frame = Nv12Frame(luma=luma, chroma=form, encoding=FULL)
        assert frame.size == (height, width)
        assert not frame.on_device
        np.testing.assert_array_equal(frame.rgb(), want)


def test_rows_may_lie_apart() -> None:
    luma, chroma = planes(6, 8, pitch=16)
    want = Nv12Frame(luma=luma[:, :8].copy(), chroma=chroma[:, :8].copy()).rgb()
    np.testing.assert_array_equal(Nv12Frame(luma=luma, chroma=chroma, width=8).rgb(), want)
    np.testing.assert_array_equal(Nv12Frame(luma=luma[:, :8], chroma=chroma[:, :8]).rgb(), want)


def test_a_surface_is_luma_above_chroma() -> None:
    luma, chroma = planes(6, 8, pitch=16)
    frame = Nv12Frame.stacked(np.concatenate([luma, chroma]), width=8, encoding=FULL)
    want = Nv12Frame(luma=luma, chroma=chroma, width=8, encoding=FULL).rgb()
    np.testing.assert_array_equal(frame.rgb(), want)
    for shape in ((8, 8), (0, 8), (9, 8, 1)):
        with pytest.raises(ImageError, match=r"expected \[3H/2,P\] with an even H"):
            Nv12Frame.stacked(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("luma", "chroma", "width"),
    [
        ((4, 6), (2, 4), None),
        ((4, 6), (1, 6), None),
        ((5, 6), (2, 6), None),
        ((4, 7), (2, 7), None),
        ((4, 6), (2, 3, 1), None),
        ((4, 6), (2, 2, 2), None),
        ((4, 6, 1), (2, 6), None),
        ((0, 6), (0, 6), None),
        ((4, 6), (2, 6), 7),
        ((4, 6), (2, 6), 0),
    ],
)
def test_planes_that_do_not_fit_are_refused(luma: Any, chroma: Any, width: int | None) -> None:
    with pytest.raises(ImageError, match=r"got luma .*; expected \[H,P\] and"):
        Nv12Frame(luma=np.zeros(luma, np.uint8), chroma=np.zeros(chroma, np.uint8), width=width)


def test_planes_of_another_type_or_place_are_refused() -> None:
    luma, chroma = planes(4, 6)
    for one in (luma.astype(np.int16), [[1, 2], [3, 4]]):
        with pytest.raises(ImageError, match="expected NumPy arrays of uint8"):
            Nv12Frame(luma=one, chroma=chroma)

    on_gpu = SimpleNamespace(__cuda_array_interface__={}, shape=(2, 6))
    with pytest.raises(InputError, match="different memories"):
        Nv12Frame(luma=luma, chroma=on_gpu)
