"""The prompt generator in C (``prompts.c``)."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .library import NativeLibrary

if TYPE_CHECKING:
    from ..ppg import PpgConstants, Prompts

__all__ = ["fill_prompts"]


def fill_prompts(
    library: NativeLibrary,
    scores: NDArray[np.float32],
    constants: "PpgConstants",
    prompts: "Prompts",
) -> None:
    """Write the prompts of checked maps [N,h,w] into ``prompts``, all bits as NumPy's."""
    scores = np.require(scores, requirements=["C", "A"])
    library.prompts(
        scores.ctypes.data,
        *scores.shape,
        constants.regions,
        constants.iterations,
        constants.threshold_offset,
        constants.temperature,
        prompts.points.ctypes.data,
        prompts.point_labels.ctypes.data,
        prompts.regions.ctypes.data,
        prompts.probabilities.ctypes.data,
    )
    with np.errstate(under="ignore"):
        np.exp(prompts.probabilities, out=prompts.probabilities)
