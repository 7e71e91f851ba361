"""A naive prompt generator: scikit-learn's k-means for each category, on the host.

It starts from k-means++ seeds, not from the farthest points of :mod:`escnet_runtime.ppg`, so it may
find other regions. It serves to compare times.
"""

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from escnet.ppg import TorchPrompts
from escnet_runtime.ppg import PpgConstants

__all__ = ["naive_prompts"]


def naive_prompts(scores: Tensor, constants: PpgConstants) -> TorchPrompts:
    """As :func:`escnet.ppg.pseudo_prompts`, for maps float32 [N,h,w] of finite numbers."""
    maps = scores.float().cpu().numpy()
    count, height, width = maps.shape
    points = np.zeros((count, constants.regions, 2), np.float32)
    point_labels = np.full((count, constants.regions), -1, np.int32)
    regions = np.full((count, height, width), -1, np.int32)
    probabilities = np.empty_like(maps)
    for index, one in enumerate(maps):
        probability = np.exp((one - one.max()) / constants.temperature)
        rows, columns = np.nonzero(probability >= constants.alpha)
        pixels = np.stack([columns, rows], axis=1)
        clusters = min(constants.regions, len(pixels))
        found = KMeans(n_clusters=clusters, random_state=0).fit_predict(pixels)
        for region in range(clusters):
            own = pixels[found == region]
            if not len(own):
                continue
            best = own[probability[own[:, 1], own[:, 0]].argmax()]
            points[index, region], point_labels[index, region] = best, 1
        regions[index, rows, columns] = found
        probabilities[index] = probability
    made = (torch.from_numpy(one).to(scores.device) for one in (points, point_labels, regions))
    return TorchPrompts(
        **dict(zip(("points", "point_labels", "regions"), made, strict=True)),
        probabilities=torch.from_numpy(probabilities).to(scores.device),
    )
