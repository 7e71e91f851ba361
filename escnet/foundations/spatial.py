"""First weights of a vision transformer that know where patches lie.

With open_clip's own, positions are noise and a small transformer spends much of a short training on
finding out which patches are neighbours. Two published starts are used together:

- positional embeddings begin as sines and cosines of row and column (arXiv 2205.01580);
- attention begins near the identity, so that a patch looks at what resembles it in content and
  place: Wq·Wkᵀ ≈ 0.7 I, Wv·Wo ≈ -0.4 I, plus noise (mimetic initialisation, arXiv 2305.09828).

All of them stay parameters.
"""

from typing import Final, cast

import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

__all__ = ["spatial_start"]

_POSITIONS: Final = 0.5  # amplitude: the patch embeddings of open_clip have a deviation near it
_HIGHEST: Final = 1.5  # radians a patch, of the shortest wave
_LONGEST: Final = 100.0  # times the shortest wave
_QUERY_KEY, _QUERY_KEY_NOISE = 0.7, 0.7
_VALUE_OUT, _VALUE_OUT_NOISE = 0.4, 0.4


@torch.no_grad()
def spatial_start(visual: VisionTransformer, grid: int) -> None:
    """Overwrite positions and attention of an untrained vision tower of ``grid`` patches a side."""
    width = visual.class_embedding.shape[0]
    visual.positional_embedding[1:] = _waves(grid, width)
    for block in visual.transformer.resblocks:
        attention = cast(nn.MultiheadAttention, cast(ResidualAttentionBlock, block).attn)
        weight = attention.in_proj_weight
        size = width // attention.num_heads
        for head in range(attention.num_heads):
            query = weight[head * size : (head + 1) * size]
            key = weight[width + head * size : width + (head + 1) * size]
            left, right = _factors(width, size, _QUERY_KEY, _QUERY_KEY_NOISE)
            query.copy_(left.T)
            key.copy_(right)
        left, right = _factors(width, width, -_VALUE_OUT, _VALUE_OUT_NOISE)
        attention.out_proj.weight.copy_(left)
        weight[2 * width :].copy_(right)


def _waves(grid: int, width: int) -> Tensor:
    """[grid², width]: sine and cosine of column and row at width/4 frequencies."""
    count = width // 4
    frequency = _HIGHEST * _LONGEST ** -torch.linspace(0, 1, count)
    rows, columns = torch.meshgrid(*2 * [torch.arange(float(grid))], indexing="ij")
    parts = [
        function(place.flatten()[:, None] * frequency)
        for place in (columns, rows)
        for function in (torch.sin, torch.cos)
    ]
    return _POSITIONS * torch.cat(parts, dim=1)


def _factors(width: int, rank: int, identity: float, noise: float) -> tuple[Tensor, Tensor]:
    """[width, rank] and [rank, width]: the best of this rank for noise plus a multiple of I."""
    target = identity * torch.eye(width) + noise * torch.randn(width, width) / width**0.5
    left, values, right = torch.linalg.svd(target)
    root = values[:rank].sqrt()
    return left[:, :rank] * root, root[:, None] * right[:rank]
