"""Whether a part of a graph is beyond a bound by itself: the check that ``debug reduce`` runs.

``python -m escnet_runtime.layers_check MODEL VALUES BOUND`` exits 1 if an output of the ONNX file
MODEL, fed from the .npz VALUES, is farther from the same part in float32 than BOUND.
"""

import sys
from pathlib import Path

import numpy as np
import onnx

from .layers_minimise import part_error

__all__ = ["main"]

_BEYOND = 1


def main(words: list[str]) -> int:
    """The exit status."""
    bound = float(words[2])
    with np.load(Path(words[1])) as values, np.errstate(over="ignore"):
        worst = part_error(onnx.load_model(words[0]), values)
    print(f"worst relative L2 {worst:.3e}, bound {bound:.3e}")
    return 0 if worst <= bound else _BEYOND


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
