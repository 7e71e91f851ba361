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
        own, guide, width = self._windows(self.norm1(x)), self._windows(guidance), x.shape[-1]
        guided = [
            F.linear(own, linear.weight[:, :width])
            + F.linear(guide, linear.weight[:, width:], linear.bias)
            for linear in (self.query, self.key)
        ]
        return self._rest(x, guided[0], guided[1], self.value(own))

    def forward_plain(self, x: Tensor, guidance: Tensor) -> Tensor:
        """The same through the concatenation itself: the reference."""
        own, guide = self._windows(self.norm1(x)), self._windows(guidance)
        both = torch.cat([own, guide.expand(x.shape[0], *guide.shape[1:])], dim=-1)
        return self._rest(x, self.query(both), self.key(both), self.value(own))

    def _windows(self, x: Tensor) -> Tensor:
        """[n, h, w, c], shifted, → [n, windows, window², c]."""
        side = self.window
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), dims=(1, 2))
        x = _swapped(x.unflatten(1, (-1, side)).unflatten(3, (-1, side)))
        # Not more axes than needed: OpenVINO has no softmax of its own for six of them.
        return x.flatten(3, 4).flatten(1, 2)

    def _maps(self, x: Tensor, width: int) -> Tensor:
        """The way back, to maps [n, h, width, c]."""
        x = x.unflatten(2, (self.window, self.window)).unflatten(1, (-1, width // self.window))
        x = _swapped(x).flatten(1, 2).flatten(2, 3)
        return torch.roll(x, (self.shift, self.shift), dims=(1, 2)) if self.shift else x

    def _rest(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """What follows queries, keys and values of the windows, [n, windows, window², C]."""
        mask = (
            _shift_mask(x.shape[1], x.shape[2], self.window, self.shift, x) if self.shift else None
        )
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(2, 3) for part in (query, key, value)
        )
        mixed = attend(q, k, v, mask).transpose(2, 3).flatten(3)
        x = x + self.output(self._maps(mixed, x.shape[2]))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def _swapped(x: Tensor) -> Tensor:
    """[n, rows, a, columns, b, c] → [n, rows, columns, a, b, c], and back."""
    return x.transpose(2, 3)


def _shift_mask(height: int, width: int, window: int, shift: int, like: Tensor) -> Tensor:
    """What may not attend to what after a cyclic shift: [windows, 1, window², window²].

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
    flat = cut.reshape(-1, 1, window * window)
    apart = flat[..., :, None] != flat[..., None, :]
    return torch.where(apart, -70.0, 0.0).to(like.dtype)
