"""Vision-language fusion: refine the correlation with the image, then with all the categories.

Paper: arXiv 2411.14723, section 3.3. Image guidance is a pair of Swin layers, one category at a
time; text guidance is linear attention over the categories at each pixel. Linear attention needs
of the other categories only two sums (Katharopoulos et al., arXiv 2006.16236, equation 5), which is
why a chunk of categories can be worked on alone and the sums be added up between chunks, group by
group (:mod:`escnet.groups`).
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .groups import by_group, weighted_sums
from .pieces import equal_pieces, tokens_at_once
from .precision import product
from .swin import GuidedSwinLayer, Mlp, token_count

__all__ = ["CategoryAttention", "ImageGuidance", "ImageGuided", "TextGuidance"]


class ImageGuided(NamedTuple):
    """What ``esc{i}_image`` gives: the embedding, and the two sums of each group."""

    embedding: Tensor
    kv_sum: Tensor
    k_sum: Tensor


class CategoryAttention(nn.Module):
    """Linear attention over the categories, one pixel at a time; φ(x) = elu(x) + 1.

    The paper is silent on the feature map and on how text guides; as CAT-Seg.

    Query and key are linear maps of [x ; t], t the category's text feature, which is the same at
    every pixel; the value is a linear map of x. No positional embedding: N is free.
    """

    def __init__(self, query: nn.Linear, key: nn.Linear, value: nn.Linear, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.heads = query, key, value, heads

    def sums(self, x: Tensor, text: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Σ_n w_n φ(k_n) v_nᵀ and Σ_n w_n φ(k_n) over each group, in float32.

        Args:
            x: [n, P, C]; text: [n, C]; weight: float32 [g, G].

        Returns:
            [g, P, H, d, d] and [g, P, H, d].
        """
        key = by_group(_feature(_guided(self.key, x, text).float()), weight)
        value = by_group(self.value(x), weight).float()
        k_sum = weighted_sums(key, weight).unflatten(-1, (self.heads, -1))
        key = self._split(key * weight[:, :, None, None])
        return product(key.transpose(-2, -1), self._split(value)), k_sum

    def read(self, x: Tensor, text: Tensor, kv_mean: Tensor, k_mean: Tensor) -> Tensor:
        """φ(q)·kv / φ(q)·k for each category and pixel: [n, P, C] → [n, P, C]."""
        query = _feature(_guided(self.query, x, text).float())
        # A sum of products: as a product with one column, ONNX Runtime's order of additions depends
        # on n; as one more column of kv_mean, all of that is copied for every chunk.
        below = (query * k_mean.flatten(1)).unflatten(-1, (self.heads, -1)).sum(-1, keepdim=True)
        mixed = product(self._split(query), kv_mean).permute(2, 0, 1, 3)
        found: Tensor = (mixed / (below + 1e-6)).flatten(2).to(x.dtype)
        return found

    def _split(self, x: Tensor) -> Tensor:
        """[..., n, P, C] → [..., P, H, n, d]."""
        out: Tensor = x.unflatten(-1, (self.heads, -1)).movedim(-4, -2)
        return out


def _feature(x: Tensor) -> Tensor:
    """elu(x) + 1, by an exponential: ONNX Runtime's Elu rounds an element by where it stands."""
    return x.clamp(max=0.0).exp() + F.relu(x)


def _guided(linear: nn.Linear, x: Tensor, text: Tensor) -> Tensor:
    """``linear([x ; text])`` with the text's half computed once a category."""
    width = x.shape[-1]
    shared = F.linear(text, linear.weight[:, width:], linear.bias)
    return F.linear(x, linear.weight[:, :width]) + shared[:, None]


class ImageGuidance(nn.Module):
    """``esc{i}_image``: two guided Swin layers, then this chunk's sums for the text guidance."""

    def __init__(self, layers: Sequence[GuidedSwinLayer], guidance_norm: nn.LayerNorm) -> None:
        super().__init__()
        self.layers, self.guidance_norm = nn.ModuleList(layers), guidance_norm
        at = list(range(len(layers[0].order())))
        for index, layer in enumerate(layers):
            order = layer.order()
            self._keep(f"order{index}", order)
            self._keep(f"move{index}", _places(at, order))
            at = order
        self._keep("back", _places(at, sorted(at)))

    def _keep(self, name: str, indices: list[int]) -> None:
        # A buffer moves with the weights; made in each call, it would be an upload to wait for.
        self.register_buffer(name, torch.tensor(indices), persistent=False)

    def forward(self, embedding: Tensor, guidance: Tensor, *, plain: bool = False) -> Tensor:
        """[n, h, w, C] and [1, G, h, w] → [n, h, w, C]."""
        x, guide = embedding, self.guidance_norm(guidance.permute(0, 2, 3, 1))
        layers = cast(Sequence[GuidedSwinLayer], self.layers)
        if plain:
            for layer in layers:
                x = layer.forward_plain(x, guide)
            return x
        # All but the attention treats each token by itself, so tokens stay in the order that the
        # attention wants, and are moved once between two layers.
        x, guide = x.flatten(1, 2), guide.flatten(1, 2)
        for index, layer in enumerate(layers):
            move, order = self.get_buffer(f"move{index}"), self.get_buffer(f"order{index}")
            pieces = layer.pieces(tokens_at_once(x, layer.mlp.hidden))
            cuts = [token_count(areas) for areas in pieces]
            moved = [
                layer(x.index_select(1, places), guide.index_select(1, tokens), areas)
                for places, tokens, areas in zip(
                    move.split(cuts), order.split(cuts), pieces, strict=True
                )
            ]
            x = torch.cat(moved, dim=1) if len(moved) > 1 else moved[0]
        return x.index_select(1, self.get_buffer("back")).view_as(embedding)


def _places(at: list[int], order: list[int]) -> list[int]:
    """The place at which each token of ``order`` stands now; ``at[i]`` is the token at place i."""
    place = {token: index for index, token in enumerate(at)}
    return [place[token] for token in order]


class TextGuidance(nn.Module):
    """``esc{i}_text``: attention over the categories, an MLP, and the scalar read-out C'."""

    def __init__(
        self,
        *,
        attention: CategoryAttention,
        project_text: nn.Linear,
        text_norm: nn.LayerNorm,
        norm1: nn.LayerNorm,
        norm2: nn.LayerNorm,
        mlp: Mlp,
        read_norm: nn.LayerNorm,
        read_out: nn.Linear,
    ) -> None:
        super().__init__()
        self.attention, self.mlp = attention, mlp
        self.project_text, self.text_norm = project_text, text_norm
        self.norm1, self.norm2 = norm1, norm2
        self.read_norm, self.read_out = read_norm, read_out

    def sums(self, embedding: Tensor, text: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`CategoryAttention.sums`; embedding is [n, h, w, C], text float32 [n, D]."""
        x = self.norm1(embedding.flatten(1, 2))
        return self.attention.sums(x, self._text(text), weight)

    def forward(
        self, embedding: Tensor, text: Tensor, scores: Tensor, kv_mean: Tensor, k_mean: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Refined embedding [n, h, w, C] and scores float32 [n, h, w].

        Args:
            embedding: [n, h, w, C] of this chunk.
            text: float32 [n, D].
            scores: float32 [n, h, w]; the read-out is added to them.
            kv_mean, k_mean: the sums over all categories, float32.
        """
        height, width = embedding.shape[1:3]
        x = embedding.flatten(1, 2)
        x = x + self.attention.read(self.norm1(x), self._text(text), kv_mean, k_mean)
        return self._finish(x, scores, height, width)

    def forward_plain(
        self, embedding: Tensor, text: Tensor, scores: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All N categories at once through the concatenations themselves: the reference."""
        height, width = embedding.shape[1:3]
        x = embedding.flatten(1, 2)
        normed, attention = self.norm1(x), self.attention
        guide = self._text(text)[:, None].expand(-1, x.shape[1], -1)
        both = torch.cat([normed, guide], dim=-1)
        heads = attention.heads
        query = _feature(attention.query(both)).unflatten(-1, (heads, -1))
        key = _feature(attention.key(both)).unflatten(-1, (heads, -1))
        value = attention.value(normed).unflatten(-1, (heads, -1)) / x.shape[0]
        kv = torch.einsum("nphd,nphe->phde", key, value)
        below = torch.einsum("nphd,phd->nph", query, key.mean(dim=0)) + 1e-6
        mixed = torch.einsum("nphd,phde->nphe", query, kv) / below[..., None]
        return self._finish(x + mixed.flatten(2), scores, height, width)

    def _text(self, text: Tensor) -> Tensor:
        out: Tensor = self.text_norm(self.project_text(text.to(self.project_text.weight.dtype)))
        return out

    def _finish(self, x: Tensor, scores: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        pieces = equal_pieces(x, self.mlp.hidden)
        if pieces == 1:
            x, change = self._refined(x)
        else:
            # Cut where it is one block of memory: a piece may begin within a category.
            cut = x.reshape(pieces, -1, x.shape[-1]).split(1)
            parts = [self._refined(part) for part in cut]
            x, change = (
                torch.cat(results).reshape(-1, height * width, results[0].shape[-1])
                for results in zip(*parts, strict=True)
            )
        return x.unflatten(1, (height, width)), scores + change.reshape(-1, height, width)

    def _refined(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [..., C], each by itself → [..., C], and the float32 change of scores [..., 1]."""
        x = x + self.mlp(self.norm2(x))
        return x, self.read_out(self.read_norm(x)).float()
