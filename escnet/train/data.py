"""What segmentation is trained on: an image of the model's size and its labels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["IGNORED", "TrainingSample"]

IGNORED = -1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingSample:
    """An image, uint8 [S, S, 3] RGB, and its labels, int64 [S, S]; -1 is not labelled."""

    image: NDArray[np.uint8]
    labels: NDArray[np.int64]
