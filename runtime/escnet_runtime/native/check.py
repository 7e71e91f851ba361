"""A library that was just compiled against NumPy, before it is kept.

Some compilers do not keep to the rules of floating-point arithmetic unless they are told in words
of their own. What is compared is small; that the sources are right is for the tests.
"""

import numpy as np
from numpy.typing import NDArray

from ..bilinear import bilinear_taps
from ..ppg import PpgConstants, empty_prompts
from ..ppg_numpy import numpy_prompts
from ..reduction import NumpyRows, PixelState
from .library import NativeLibrary
from .prompts import fill_prompts
from .upsample import NativeRows

__all__ = ["first_difference"]

_SPECIAL = np.array([0.0, -0.0, 1e-42, np.nan, np.inf, -np.inf, 3e38, -3e38], np.float32)


def first_difference(library: NativeLibrary) -> str | None:
    """In what a library's results differ from NumPy's, in words; None if in nothing."""
    random = np.random.default_rng(0)
    for spread in (0.01, 0.1):
        scores = random.normal(0, spread, (12, 13, 19)).astype(np.float32)
        scores[4:8] = np.round(scores[4:8], 2)  # ties
        _sprinkle(scores[2:6], random)
        scores[0], scores[1] = np.nan, random.choice(_SPECIAL[:2], scores[1].shape)
        different = _different_prompts(library, scores)
        if different is not None:
            return different
    logits = random.normal(0, 3, (40, 7, 9)).astype(np.float32)
    logits[:, :, :4] = np.round(logits[:, :, :4] / 2)
    _sprinkle(logits[:10], random)
    return _different_labels(library, logits)


def _sprinkle(values: NDArray[np.float32], random: np.random.Generator) -> None:
    odd = random.random(values.shape) < 0.05
    values[odd] = random.choice(_SPECIAL, int(odd.sum()))


def _different_prompts(library: NativeLibrary, scores: NDArray[np.float32]) -> str | None:
    constants = PpgConstants()
    want, got = empty_prompts(scores, constants), empty_prompts(scores, constants)
    numpy_prompts(scores, constants, want)
    fill_prompts(library, scores, constants, got)
    for name in ("points", "point_labels", "regions", "probabilities"):
        if getattr(got, name).tobytes() != getattr(want, name).tobytes():
            return f"{name} of prompts"
    return None


def _different_labels(library: NativeLibrary, logits: NDArray[np.float32]) -> str | None:
    height, width = 71, 150  # more than tiles of upsample.c hold
    wanted, found = (
        PixelState(
            rows=bilinear_taps(logits.shape[1], height),
            columns=bilinear_taps(logits.shape[2], width),
            best=np.full((height, width), -np.inf, np.float32),
            total=np.zeros((height, width), np.float32),
            label=np.zeros((height, width), np.uint8),
        )
        for _ in range(2)
    )
    in_numpy, in_c = NumpyRows(wanted), NativeRows(library, found)
    for rows in (in_numpy, in_c):
        for first in (20, 0):  # in any order
            rows.reduce(first, rows.prepared(logits[first : first + 20]), range(height))
    for name in ("label", "best"):
        if not np.array_equal(getattr(found, name), getattr(wanted, name)):
            return f"{name} of up-sampling"
    if not np.allclose(found.total, wanted.total, rtol=1e-4, atol=0):
        return "the sum of up-sampling"
    wanted.total[:] = np.geomspace(1, 65536, height * width).reshape(height, width)
    found.total[:] = wanted.total
    if not np.array_equal(in_c.confidence(), in_numpy.confidence()):
        return "confidence of up-sampling"
    return None
