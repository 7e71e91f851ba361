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
        labels: int64 [H, W], category or ``IGNORED``; H and W are multiples of ``grid``.
        count: number of categories, n.
        grid: cells a side.

    Returns:
        float32 [n, grid, grid]; a cell's shares add up to its labelled part.
    """
    height, width = labels.shape
    rows = torch.arange(height, device=labels.device) // (height // grid)
    columns = torch.arange(width, device=labels.device) // (width // grid)
    cells = rows[:, None] * grid + columns
    kept = labels != IGNORED
    found = torch.bincount(
        labels[kept] * (grid * grid) + cells[kept], minlength=count * grid * grid
    )
    return found.view(count, grid, grid) / ((height // grid) * (width // grid))


def correlation_loss(scores: Tensor, shares: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of correlation maps against the categories' shares of each cell.

    The softmax over the categories has the temperature of the prompt generator's softmax over the
    pixels, so that maps are as steep as prompts need them.

    Args:
        scores: float32 [n, h, w].
        shares: float32 [n, h, w], of :func:`cell_shares`.
        temperature: τ.

    Returns:
        Scalar, the mean over the labelled area.
    """
    likely = torch.log_softmax(scores / temperature, dim=0)
    return -(shares * likely).sum() / shares.sum().clamp(min=1e-6)
