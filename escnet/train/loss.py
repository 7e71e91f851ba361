"""Losses of a segmentation, and how much each of them weighs."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from escnet_runtime.errors import InputError

from .data import IGNORED

__all__ = ["LossWeights", "cell_shares", "correlation_loss"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossWeights:
    """``[loss]``: weights beside the cross-entropy of the logits, which weighs 1.

    Attributes:
        correlation: of :func:`correlation_loss`, the mean over the maps that enter the blocks and
            make their prompts: C and each block's C', the last one's excepted. The paper is silent
            on what teaches C' to be a correlation; without a loss of its own, its only gradient
            comes through the mask prompts. 0 is the paper's cross-entropy alone.
    """

    correlation: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.correlation < math.inf:
            raise InputError(f"correlation is {self.correlation}; expected 0 or more")


def cell_shares(labels: Tensor, count: int, grid: int) -> Tensor:
    """What part of each cell of a grid each category has.

    Args:
        labels: integers [b, H, W], category or ``IGNORED``; H and W are multiples of ``grid``.
        count: number of categories, n.
        grid: cells a side.

    Returns:
        float32 [b, n, grid, grid]; a cell's shares add up to its labelled part.
    """
    images, height, width = labels.shape
    step = torch.arange(max(height, width), device=labels.device)
    rows, columns = step[:height] // (height // grid), step[:width] // (width // grid)
    cells = rows[:, None] * grid + columns
    # A category more, for what is not labelled: nothing has to be counted before it is kept.
    category = torch.where(labels == IGNORED, count, labels).long()
    image = torch.arange(images, device=labels.device)[:, None, None]
    place = (image * (count + 1) + category) * (grid * grid) + cells
    found = torch.bincount(place.flatten(), minlength=images * (count + 1) * grid * grid)
    pixels = (height // grid) * (width // grid)
    return found.view(images, count + 1, grid, grid)[:, :count] / pixels


def correlation_loss(scores: Tensor, shares: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of correlation maps against the categories' shares of each cell.

    The softmax over the categories has the temperature of the prompt generator's softmax over the
    pixels, so that maps are as steep as prompts need them.

    Args:
        scores: float32 [b, n, h, w].
        shares: float32 [b, n, h, w], of :func:`cell_shares`.
        temperature: τ.

    Returns:
        float32 [b]: the mean over each image's labelled area.
    """
    likely = torch.log_softmax(scores / temperature, dim=1)
    area = shares.flatten(1).sum(1).clamp(min=1e-6)
    return -(shares * likely).flatten(1).sum(1) / area
