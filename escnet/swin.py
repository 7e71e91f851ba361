"""Swin layers whose queries and keys are guided by features that all categories share.

The guided form is CAT-Seg's: query and key are linear maps of [x_n ; g], the value of x_n alone,
and windows have no relative position bias (the paper is silent). A linear map of a concatenation is
W_x x_n + W_g g, and W_g g is the same for every category, so it is computed once.

All but the attention treats a token by itself. So the tokens stand in the order in which the
attention wants them, areas that may see each other side by side, and nothing is rolled or masked.
"""

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .clip import attend

__all__ = ["GuidedSwinLayer", "Mlp", "token_count"]


class Mlp(nn.Module):
    """Linear, GELU, linear, on the last axis."""

    def __init__(self, up: nn.Linear, down: nn.Linear) -> None:
        super().__init__()
        self.up, self.down = up, down

    @property
    def hidden(self) -> int:
        """Channels between the two linear layers."""
        return self.up.out_features

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
        grid: height and width of the maps.
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
        grid: tuple[int, int],
    ) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = query, key, value, output
        self.mlp, self.norm1, self.norm2 = mlp, norm1, norm2
        self.heads, self.window, self.shift, self.grid = heads, window, shift, grid
        self._area_tokens = [len(area) for area in self._areas()]  # asked for in every call

    def forward(
        self, x: Tensor, guidance: Tensor, areas: Mapping[int, int] | None = None
    ) -> Tensor:
        """Tokens [n, P, C] and [1, P, G], in the order of :meth:`order`, → [n, P, C].

        ``areas`` is one of :meth:`pieces`, if the tokens are that piece's and not all.
        """
        own, width = self.norm1(x), x.shape[-1]
        guided = [
            F.linear(own, linear.weight[:, :width])
            + F.linear(guidance, linear.weight[:, width:], linear.bias)
            for linear in (self.query, self.key)
        ]
        # A row of the attention sums to 1, so what is added to every value is added to the result.
        value = F.linear(own, self.value.weight)
        bias = (self.output.weight * self.value.bias).sum(dim=1) + self.output.bias
        areas = areas or Counter(self._area_tokens)
        mixed = self._attention(guided[0], guided[1], value, areas)
        return self._rest(x, F.linear(mixed, self.output.weight, bias))

    def forward_plain(self, x: Tensor, guidance: Tensor) -> Tensor:
        """Maps [n, h, w, C] and [1, h, w, G] → [n, h, w, C], through the concatenation itself: the
        reference.
        """
        own, guide = self._windows(self.norm1(x)), self._windows(guidance)
        both = torch.cat([own, guide.expand(x.shape[0], *guide.shape[1:])], dim=-1)
        mask = _shift_mask(self.grid, self.window, self.shift, own) if self.shift else None
        qkv = self.query(both), self.key(both), self.value(own)
        mixed = self._attend(*qkv, self.window**2, mask)
        return self._rest(x, self._maps(self.output(mixed)))

    def order(self) -> list[int]:
        """The token (its number in the map, row by row) at each place.

        Tokens that attend to each other stand together, larger areas first.
        """
        return [token for area in self._areas() for token in area]

    def pieces(self, tokens: int) -> list[Counter[int]]:
        """The areas cut into pieces of at most so many tokens, but of one area at least.

        A piece is {tokens of an area: how many areas have so many}, larger areas first. Tokens of
        different pieces never meet.
        """
        cut: list[Counter[int]] = []
        for count in self._area_tokens:
            if not cut or token_count(cut[-1]) + count > tokens:
                cut.append(Counter())
            cut[-1][count] += 1
        return cut

    def _areas(self) -> list[list[int]]:
        """The tokens that attend to each other.

        After a cyclic shift, windows at the border hold tokens of opposite borders, which are no
        neighbours (Swin Transformer, arXiv 2103.14030, figure 4). Swin masks what they must not
        see; each area by itself gives the same with no mask and fewer products.
        """
        (height, width), shift = self.grid, self.shift
        areas = [
            [(y + shift) % height * width + (x + shift) % width for y in rows for x in columns]
            for rows in _bands(height, self.window, shift)
            for columns in _bands(width, self.window, shift)
        ]
        return sorted(areas, key=len, reverse=True)

    def _windows(self, x: Tensor) -> Tensor:
        """[n, h, w, c], shifted and cut, → [n, P, c]."""
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), dims=(1, 2))
        x = x.unflatten(1, (-1, self.window)).unflatten(3, (-1, self.window))
        return x.transpose(2, 3).flatten(1, 4)

    def _maps(self, x: Tensor) -> Tensor:
        """The way back, to maps [n, h, w, c]."""
        rows, columns = (side // self.window for side in self.grid)
        x = x.unflatten(1, (rows, columns, self.window, self.window))
        x = x.transpose(2, 3).flatten(1, 2).flatten(2, 3)
        return torch.roll(x, (self.shift, self.shift), dims=(1, 2)) if self.shift else x

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, areas: Mapping[int, int]
    ) -> Tensor:
        """Each area by itself: [n, P, C] in the order of :meth:`order`, → [n, P, C]."""
        if len(areas) == 1:  # a split in one would be a copy
            return self._attend(query, key, value, next(iter(areas)))
        tokens = [size * count for size, count in areas.items()]
        queries, keys, values = (x.split(tokens, dim=1) for x in (query, key, value))
        # Areas of one size are one batch.
        mixed = [
            self._attend(queries[index], keys[index], values[index], size)
            for index, size in enumerate(areas)
        ]
        return torch.cat(mixed, dim=1)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, size: int, mask: Tensor | None = None
    ) -> Tensor:
        """Attention within areas of ``size`` tokens, one after the other: [n, P, C] → [n, P, C]."""
        # [n, areas, heads, size, d]. Not more axes than needed: OpenVINO has no softmax of its
        # own for six of them.
        q, k, v = (
            part.unflatten(1, (-1, size)).unflatten(-1, (self.heads, -1)).transpose(2, 3)
            for part in (query, key, value)
        )
        return attend(q, k, v, mask).transpose(2, 3).flatten(3).flatten(1, 2)

    def _rest(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows the attention, in any order of tokens."""
        x = x + attended
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def token_count(areas: Mapping[int, int]) -> int:
    """How many tokens the areas of a piece have together."""
    return sum(size * count for size, count in areas.items())


def _bands(length: int, window: int, shift: int) -> list[range]:
    """A shifted side in ranges: what shares a window there and was neighbours before the shift."""
    ends = [*range(0, length, window), *([length - shift] if shift else []), length]
    return [range(start, end) for start, end in pairwise(ends)]


def _shift_mask(grid: tuple[int, int], window: int, shift: int, like: Tensor) -> Tensor:
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

    height, width = grid
    area = part(height)[:, None] * 3 + part(width)[None, :]
    cut = area.reshape(height // window, window, width // window, window).permute(0, 2, 1, 3)
    flat = cut.reshape(-1, 1, window * window)
    apart = flat[..., :, None] != flat[..., None, :]
    return torch.where(apart, -70.0, 0.0).to(like.dtype)
