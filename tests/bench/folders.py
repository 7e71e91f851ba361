"""Dataset folders that tests make."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["made_dataset", "save_image", "save_labels"]


def save_image(path: Path, height: int, width: int, *, seed: int = 0) -> None:
    """Write a picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def save_labels(path: Path, labels: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    """Write a label map of 8 or 16 bits, by its type."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(path)


def made_dataset(
    root: Path, names: Sequence[str] = ("sky", "tree, plant", "wall"), *, images: int = 2
) -> Path:
    """A dataset folder with pictures of different sizes; the last row is not labelled."""
    for index in range(images):
        height, width = 24 + 8 * index, 40
        save_image(root / "images" / f"photo{index}.jpg", height, width, seed=index)
        labels = (np.arange(width)[None] * len(names) // width).repeat(height, 0).astype(np.uint8)
        labels[-1] = 255
        save_labels(root / "labels" / f"photo{index}.png", labels)
    (root / "classes.json").write_text(json.dumps(list(names)), encoding="utf-8")
    return root
