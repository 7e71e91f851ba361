"""Swin layers whose queries and keys are guided by features that all categories share.

The guided form is CAT-Seg's: query and key are linear maps of [x_n ; g], the value of x_n alone,
and windows have no relative position bias (the paper is silent). A linear map of a concatenation is
W_x x_n + W_g g, and W_g g is the same for every category, so it is computed once.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .clip import attend

__all__ = ["GuidedSwinLayer", "Mlp"]


class Mlp(nn.Module):
    """Linear, GELU, linear, on the last axis."""

    def __init__(self, up: nn.Linear, down: nn.Linear) -> None:
        super().__init__()
        self.up, self.down = up, down

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.gelu(self.up(x)))
        return out


class GuidedSwinLayer(nn.Module):
    """One Swin layer: windowed attention (shifted or not) and an MLP, both pre-norm.

    Args:
        query, key: linear maps of [x ; guidance], widths C + G → C.
        value, output: linear maps C → C.
        heads: attention heads.
        window: tokens a side of a window; divides the grid.
        shift: cyclic shift of the grid before windows are cut, 0 for none.
    """

    def __init__(
        self,
        *,
        query: nn.Linear,
        key: nn.Linear,
        value: nn.Linear,
        output: nn.Linear,
        mlp: Mlp,
        norm1: nn.LayerNorm,
        norm2: nn.LayerNorm,
        heads: int,
        window: int,
        shift: int,
    ) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = query, key, value, output
        self.mlp, self.norm1, self.norm2 = mlp, norm1, norm2
        self.heads, self.window, self.shift = heads, window, shift

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        """[n, h, w, C] and [1, h, w, G] → [n, h, w, C]."""
        return self._rest(x, self._qkv(self._shifted(self.norm1(x)), self._shifted(guidance)))

    def forward_plain(self, x: Tensor, guidance: Tensor) -> Tensor:
        """The same through the concatenation itself: the reference."""
        normed = self.norm1(x)
        both = torch.cat([normed, guidance.expand(x.shape[0], -1, -1, -1)], dim=-1)
        qkv = torch.cat([self.query(both), self.key(both), self.value(normed)], dim=-1)
        return self._rest(x, self._shifted(qkv))

    def _shifted(self, x: Tensor) -> Tensor:
        """The cyclic shift of a grid [n, h, w, ·]."""
        if not self.shift:
            return x
        return torch.roll(x, (-self.shift, -self.shift), dims=(1, 2))

    def _qkv(self, x: Tensor, guidance: Tensor) -> Tensor:
        width = x.shape[-1]
        own = torch.cat(
            [self.query.weight[:, :width], self.key.weight[:, :width], self.value.weight]
        )
        shared = torch.cat(
            [
                F.linear(guidance, self.query.weight[:, width:], self.query.bias),
                F.linear(guidance, self.key.weight[:, width:], self.key.bias),
                self.value.bias.expand(*guidance.shape[:3], -1),
            ],
            dim=-1,
        )
        return F.linear(x, own) + shared

    def _rest(self, x: Tensor, qkv: Tensor) -> Tensor:
        """What follows queries, keys and values, [n, h, w, 3 · C] in the shifted grid."""
        height, width = x.shape[1:3]
        # [n, rows, a, columns, b, 3, heads, d] → [3, n, rows, columns, heads, a · b, d]
        side, rows, columns = self.window, height // self.window, width // self.window
        parts = qkv.reshape(-1, rows, side, columns, side, 3, self.heads, x.shape[3] // self.heads)
        parts = parts.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(5, 6)
        mask = _shift_mask(height, width, side, self.shift, x) if self.shift else None
        mixed = attend(parts[0], parts[1], parts[2], mask)
        # [n, rows, columns, heads, a, b, d] → [n, rows, a, columns, b, heads, d]
        mixed = mixed.unflatten(4, (side, side)).permute(0, 1, 4, 2, 5, 3, 6)
        mixed = mixed.reshape(-1, height, width, x.shape[3])
        if self.shift:
            mixed = torch.roll(mixed, (self.shift, self.shift), dims=(1, 2))
        x = x + self.output(mixed)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def _shift_mask(height: int, width: int, window: int, shift: int, like: Tensor) -> Tensor:
    """What may not attend to what after a cyclic shift: [rows, columns, 1, window², window²].

    Swin Transformer (arXiv 2103.14030), figure 4: pixels that came from opposite borders share a
    window but are no neighbours. 0 where attention is allowed, -70 elsewhere, a factor of e^-70.
    Swin's own -100 makes denormal numbers of what it hides, and so do values far below it on their
    way to 0: the softmax then takes 20 times as long on Intel's cores, and the product with the
    values 30 times (measured, ONNX Runtime 1.32).
    """

    def part(length: int) -> Tensor:
        position = torch.arange(length, device=like.device)
        return (position >= length - window).int() + (position >= length - shift).int()

    area = part(height)[:, None] * 3 + part(width)[None, :]
    cut = area.reshape(height // window, window, width // window, window).permute(0, 2, 1, 3)
    flat = cut.reshape(height // window, width // window, 1, window * window)
    apart = flat[..., :, None] != flat[..., None, :]
    return torch.where(apart, -70.0, 0.0).to(like.dtype)
