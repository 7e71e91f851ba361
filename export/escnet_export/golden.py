"""The golden run: one photo through float32 torch, kept so that a device can check itself.

``golden/`` holds the photo, the label map and, in ``reference.json``, sketches of every stage's
outputs. A device repeats the run with the golden prompts, because one prompt that flips on a
near-tie would change every later stage without anything being wrong; flips are counted separately.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from escnet_runtime.pictures import save_label_png
from escnet_runtime.sketch import sketch

from .parity import Sample, label_map

__all__ = ["GOLDEN_FILES", "write_golden"]

GOLDEN_FILES = ("image.png", "labels.png", "reference.json", "prompts.npz")


def write_golden(
    folder: Path,
    sample: Sample,
    *,
    categories: Sequence[str],
    prompts: Sequence[str],
    tokens: npt.NDArray[np.int32],
    text: npt.NDArray[np.float32],
    stage_tolerance: float,
    pixel_agreement: float,
) -> None:
    """Write the golden files into ``folder``.

    Args:
        folder: exists already.
        sample: the golden photo through float32 torch.
        categories: their names, in the order of the logits.
        prompts: the texts that were embedded, cleaned.
        tokens: int32 [t, l] of ``prompts``.
        text: float32 [t, D], the embeddings of ``prompts``.
        stage_tolerance: largest relative L2 that a stage may have on a device.
        pixel_agreement: smallest share of equal labels that a device may have.
    """
    Image.fromarray(sample.image).save(folder / "image.png")
    height, width = sample.image.shape[:2]
    outcome = sample.outcome
    labels = label_map(outcome.logits, height, width)
    save_label_png(folder / "labels.png", labels, categories)
    np.savez_compressed(
        folder / "prompts.npz",
        points=np.stack([p.points for p in outcome.prompts]).astype(np.int16),
        point_labels=np.stack([p.point_labels for p in outcome.prompts]).astype(np.int8),
        regions=np.stack([p.regions for p in outcome.prompts]).astype(np.int8),
    )
    stages: dict[str, dict[str, list[float]]] = {
        "text_encoder": _sketches({"embeddings": text}),
        **{call.graph: _sketches(call.outputs) for call in sample.calls},
    }
    reference: dict[str, Any] = {
        "categories": list(categories),
        "prompts": list(prompts),
        "tokens": tokens.tolist(),
        "stage_tolerance": stage_tolerance,
        "pixel_agreement": pixel_agreement,
        "preprocessed": _numbers(sample.calls[0].inputs["image"]),
        "stages": stages,
    }
    content = json.dumps(reference, allow_nan=False)  # escnet-verify refuses NaN as well
    (folder / "reference.json").write_text(content, encoding="utf-8")


def _sketches(outputs: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, list[float]]:
    return {name: _numbers(array) for name, array in outputs.items()}


def _numbers(array: npt.NDArray[np.generic]) -> list[float]:
    return [float(f"{value:.7g}") for value in sketch(array)]
