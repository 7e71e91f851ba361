"""Scenes of the small world for training, and a model's figures on held-out ones."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from escnet.model import EscNet
from escnet.train.data import TrainingSample
from escnet.train.segmentation import TextEncoding, normalised
from escnet_runtime.confusion import ConfusionCounter
from escnet_runtime.world import ShapesDataset, class_groups, dataset

__all__ = ["Predict", "TrainingScenes", "held_out_figures"]

#: Model, normalised image [1, 3, S, S] and text [N, D] → scores of the categories [N, h, w].
Predict: TypeAlias = Callable[[EscNet, Tensor, Tensor], Tensor]


class TrainingScenes:
    """Training scenes without end; none is shown twice.

    Args:
        first: number of the first scene.
        size: px a side.
    """

    def __init__(self, first: int, size: int) -> None:
        self._first = first
        self._scenes = dataset("shapes:train", length=1 << 30, size=size)

    def __getitem__(self, index: int) -> TrainingSample:
        image, labels = self._scenes[self._first + index]
        return TrainingSample(image=image, labels=labels.astype(np.int64))


@torch.no_grad()
def held_out_figures(
    model: EscNet,
    scenes: ShapesDataset,
    *,
    predict: Predict = EscNet.forward,
    progress: Callable[[], None] = lambda: None,
) -> Mapping[str, float]:
    """mIoU and pixel accuracy on some scenes, among all names of their set.

    Scores are brought to the image's size bilinearly, and the highest wins. ``miou_held_out`` and
    the like are the means over a group of classes (see :func:`class_groups`), 0 if none of them
    occurs.
    """
    device = next(model.parameters()).device
    every = torch.arange(len(scenes.classes), device=device)
    text = TextEncoding(model, scenes.classes).encode(model, every)
    counter = ConfusionCounter(len(scenes.classes))
    for image, labels in scenes:
        pixels = normalised(model, torch.from_numpy(image)[None].to(device))
        maps = predict(model, pixels, text)[None]
        scores = F.interpolate(maps, size=labels.shape, mode="bilinear")
        counter.add(scores[0].argmax(0).to(torch.uint8).cpu().numpy(), labels)
        progress()
    found = counter.scores()
    groups = class_groups(scenes.split).items()
    return {
        "miou": found.miou or 0.0,
        "pixel_accuracy": found.pixel_accuracy or 0.0,
        **{f"miou_{name}": counter.scores(places).miou or 0.0 for name, places in groups},
    }
