"""Pseudo Prompt Generator (ESC-Net, arXiv 2411.14723, section 3): correlation maps to SAM prompts.

For every category: keep the pixels of its correlation map that are close to the peak, split them
into at most five regions by k-means on the pixel coordinates, and prompt SAM with each region and
its best pixel. The paper is silent on seeds, ties and the number of iterations. Decided here so
that NumPy, torch (``escnet.ppg``) and CUDA choose the same pixels bit for bit:

* The only floating-point operation that a decision rests on is one float32 addition,
  ``peak + threshold_offset``. Probabilities are values, never compared.
* -0.0 equals 0.0. NaN and -inf are never foreground. A peak of +inf keeps the +inf pixels alone.
* Pixels are numbered ``y * w + x``; a tie goes to the lowest pixel, between regions to the lowest
  region.
* The first seed is the peak, each further one the foreground pixel farthest from all seeds, as
  long as that distance is above zero.
* Centroids are exact rationals (count, sum of x, sum of y). A region that loses all its pixels
  keeps its centroid.

NumPy decides in :mod:`escnet_runtime.ppg_numpy`; where there is a C compiler, C does, several times
faster (:mod:`escnet_runtime.native`).
"""

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from escnet_runtime.errors import InputError
from escnet_runtime.native import native_library
from escnet_runtime.native.prompts import fill_prompts
from escnet_runtime.ppg_numpy import MAX_PIXELS, numpy_prompts

__all__ = [
    "MAX_PIXELS",
    "PpgConstants",
    "Prompts",
    "empty_prompts",
    "pseudo_prompts",
]

_MAX_REGIONS = 16
_Floats = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PpgConstants:
    """What the model fixes about its prompts; stored with the checkpoint.

    ``temperature``: of the softmax over a map's pixels, in units of the scores.
    ``alpha``: foreground is what reaches this fraction of the peak's probability.
    ``regions``: regions, and so points, a category (the paper's N_o).
    ``iterations``: most Lloyd iterations of k-means.

    Raises InputError if a value is out of range.
    """

    temperature: float = 0.02
    alpha: float = 0.5
    regions: int = 5
    iterations: int = 10

    def __post_init__(self) -> None:
        # Bounds of the temperature: float32 neither loses it nor overflows on the offset.
        for name, low, high in (("alpha", 1e-30, 1), ("temperature", 1e-30, 1e30)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not low <= value <= high:
                raise InputError(
                    f"PPG {name} is {value!r}; expected a number from {low:g} to {high:g}"
                )
        _check_integer("regions", self.regions, 1, _MAX_REGIONS)
        _check_integer("iterations", self.iterations, 0, 1000)

    @property
    def threshold_offset(self) -> float:
        """temperature * ln(alpha) in float32, the second addend of the threshold (never above 0).

        Both factors are rounded to float32, then their product, once.
        """
        return float(np.float32(self.temperature) * np.float32(math.log(self.alpha)))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Prompts:
    """Prompts of N categories, K regions each, on a grid of h rows and w columns.

    ``points``: float32 [N,K,2], (x, y) in whole grid pixels. SAM's prompt encoder adds the 0.5.
    ``point_labels``: int32 [N,K], 1 for a point; -1 for an unused region, whose point is (0, 0).
    ``regions``: int32 [N,h,w], the pixel's region, -1 for background.
    ``probabilities``: float32 [N,h,w], exp((score - peak) / temperature) of every pixel.
    """

    points: _Floats
    point_labels: _Ints
    regions: _Ints
    probabilities: _Floats


def pseudo_prompts(scores: _Floats, constants: PpgConstants) -> Prompts:
    """Turn correlation maps, float32 [N,h,w] with h*w up to ``MAX_PIXELS``, into prompts.

    Categories do not influence one another. A map without a usable pixel (all NaN or -inf) gets
    no foreground and no points. Raises InputError for another shape or type.
    """
    _check_scores(scores)
    prompts = empty_prompts(scores, constants)
    library = native_library()
    if library is None:
        numpy_prompts(scores, constants, prompts)
    else:
        fill_prompts(library, scores, constants, prompts)
    return prompts


def empty_prompts(scores: _Floats, constants: PpgConstants) -> Prompts:
    """Room for the prompts of ``scores``."""
    n, h, w = scores.shape
    return Prompts(
        points=np.empty((n, constants.regions, 2), np.float32),
        point_labels=np.empty((n, constants.regions), np.int32),
        regions=np.empty((n, h, w), np.int32),
        probabilities=np.empty((n, h, w), np.float32),
    )


def _check_integer(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f"PPG {name} is {value!r}; expected an integer from {low} to {high}")


def _check_scores(scores: object) -> None:
    if not isinstance(scores, np.ndarray):
        raise InputError(f"scores are {type(scores).__name__}; expected a NumPy array [N,h,w]")
    if scores.dtype != np.float32:
        raise InputError(f"scores are {scores.dtype}; expected float32: convert them first")
    if scores.ndim != 3 or 0 in scores.shape:
        raise InputError(f"scores have shape {list(scores.shape)}; expected a non-empty [N,h,w]")
    if scores.shape[1] * scores.shape[2] > MAX_PIXELS:
        h, w = scores.shape[1:]
        raise InputError(f"scores have {h}x{w} pixels a map; at most {MAX_PIXELS} are supported")
