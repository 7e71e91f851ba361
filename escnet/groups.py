"""Sums over categories, a group of them at a time: see :mod:`escnet_runtime.groups` for why.

Every group is padded to its full size, so that a group's sum is one and the same reduction however
many groups and categories are worked on at a time.
"""

import torch
from torch import Tensor

from escnet_runtime.groups import GROUP
from escnet_runtime.groups import group_weights as runtime_weights

from .precision import product

__all__ = ["by_group", "group_weights", "sum_of_groups", "weighted_sums"]


def group_weights(categories: int, *, device: torch.device) -> Tensor:
    """Weights float32 [g, G] of the mean over all categories: 1/N, and 0 for padding."""
    return torch.from_numpy(runtime_weights(categories, categories, GROUP)).to(device)


def by_group(x: Tensor, weight: Tensor) -> Tensor:
    """[n, ...] → [g, G, ...] for weights [g, G]; the last category is repeated to fill its group.

    The index depends on shapes alone. Padding by a computed width would do the same, but exporters
    fail on it; so would a mask [g, n], but it grows with the square of the chunk.
    """
    index = torch.arange(weight.numel(), device=x.device).clamp(max=x.shape[0] - 1)
    grouped: Tensor = x[index].unflatten(0, weight.shape)
    return grouped


def weighted_sums(grouped: Tensor, weight: Tensor) -> Tensor:
    """Σ over each group: [g, G, ...] and weights [g, G] → [g, ...], in float32."""
    sums = product(weight[:, None], grouped.flatten(2))
    return sums.reshape(-1, *grouped.shape[2:])


def sum_of_groups(sums: Tensor) -> Tensor:
    """[g, ...] → [...], added up in the order of the groups, as the runtime does."""
    total = sums[0]
    for part in sums[1:]:
        total = total + part
    return total
