"""SAM's two-way transformer for many categories at once, with what they share computed once.

The weights and the result are those of ``segment_anything``'s ``TwoWayTransformer``; the order of
multiplications differs, exactly (associativity), in four ways:

* In the first layer every category's keys are ``shared + basis · mask_n`` where the mask prompt has
  few channels (16 in SAM): projections of ``shared`` are computed once for all categories, and the
  rest has rank 16.
* There are 5 tokens and 8 heads, so 40 rows; a projection of 576 keys to 128 channels costs three
  times as much as moving the projection to the 40 rows.
* What the image finds in the tokens is added to its keys by one product, bias included.
* Only the keys are read afterwards, so the last token-to-image attention is left out.
"""

from typing import Protocol

import torch
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock, TwoWayTransformer
from torch import Tensor, nn

from .exporting import exporting

__all__ = ["DenseKeys", "LowRankKeys", "two_way"]


class Keys(Protocol):
    """Image tokens of n categories, [n, P, C], in whatever form is cheapest to multiply with."""

    def match(self, rows: Tensor, projection: nn.Linear, position: Tensor) -> Tensor:
        """``rows · projection(keys + position)``: [n, H, K, d], → [n, H, K, P]."""

    def collect(self, attention: Tensor, projection: nn.Linear) -> Tensor:
        """``attention @ projection(keys)`` for rows that sum to 1: [n, H, K, P] → [n, H, K, d]."""

    def dense(self) -> Tensor:
        """The keys themselves, [n, P, C]."""

    def plus(self, shares: Tensor, rows: Tensor) -> Tensor:
        """``keys + shares @ rows``: [n, P, R] and [n, R, C], → [n, P, C]."""


class LowRankKeys:
    """Keys of the form ``shared[p] + basis @ mask_n[p]``.

    Args:
        shared: [P, C], the same for every category.
        mask: [n, P, M], the category's mask prompt before SAM's last 1×1 convolution.
        basis: [C, M], that convolution's weight.
    """

    def __init__(self, shared: Tensor, mask: Tensor, basis: Tensor) -> None:
        self.shared, self.mask, self.basis = shared, mask, basis

    def match(self, rows: Tensor, projection: nn.Linear, position: Tensor) -> Tensor:
        n, heads, count, d = rows.shape
        shared = projection(self.shared + position).reshape(-1, heads, d).permute(1, 2, 0)
        basis = (projection.weight @ self.basis).reshape(heads, d, -1)
        low = (rows @ basis).reshape(n, heads * count, -1) @ self.mask.transpose(1, 2)
        out: Tensor = rows @ shared + low.reshape(n, heads, count, -1)
        return out

    def collect(self, attention: Tensor, projection: nn.Linear) -> Tensor:
        n, heads, count, pixels = attention.shape
        shared = projection(self.shared).reshape(pixels, heads, -1).transpose(0, 1)
        basis = (projection.weight @ self.basis).reshape(heads, -1, self.basis.shape[1])
        low = (attention.reshape(n, heads * count, pixels) @ self.mask).reshape(n, heads, count, -1)
        out: Tensor = attention @ shared + low @ basis.transpose(1, 2)
        return out

    def dense(self) -> Tensor:
        return self.shared + self.mask @ self.basis.T

    def plus(self, shares: Tensor, rows: Tensor) -> Tensor:
        # One product: keys of their own, and then a sum, would be two more passes over [n, P, C].
        basis = self.basis.T.expand(rows.shape[0], -1, -1)
        out: Tensor = torch.cat([self.mask, shares], 2) @ torch.cat([basis, rows], 1)
        return self.shared + out


class DenseKeys:
    """Keys with nothing in common, [n, P, C]."""

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys

    def match(self, rows: Tensor, projection: nn.Linear, position: Tensor) -> Tensor:
        n, heads, count, d = rows.shape
        moved = rows @ projection.weight.reshape(heads, d, -1)
        own = moved.reshape(n, heads * count, -1) @ self.keys.transpose(1, 2)
        shared = projection(position).reshape(-1, heads, d).permute(1, 2, 0)
        out: Tensor = own.reshape(n, heads, count, -1) + rows @ shared
        return out

    def collect(self, attention: Tensor, projection: nn.Linear) -> Tensor:
        n, heads, count, pixels = attention.shape
        own = (attention.reshape(n, heads * count, pixels) @ self.keys).reshape(n, heads, count, -1)
        weight = projection.weight.reshape(heads, -1, self.keys.shape[2])
        return own @ weight.transpose(1, 2) + projection.bias.reshape(heads, 1, -1)

    def dense(self) -> Tensor:
        return self.keys

    def plus(self, shares: Tensor, rows: Tensor) -> Tensor:
        return self.keys + shares @ rows


def two_way(transformer: TwoWayTransformer, keys: Keys, position: Tensor, tokens: Tensor) -> Tensor:
    """The image side of ``TwoWayTransformer``: keys [n, P, C] after all layers.

    Args:
        transformer: segment_anything's module; its last token-to-image attention is not used.
        keys: the image tokens.
        position: their positional encoding [P, C], the same for every category.
        tokens: the prompts [n, K, C], which are also their own positional encoding.
    """
    queries = tokens
    for layer in transformer.layers:
        assert isinstance(layer, TwoWayAttentionBlock)
        queries, keys = _layer(layer, queries, keys, tokens, position)
    return keys.dense()


def _layer(
    layer: TwoWayAttentionBlock, queries: Tensor, keys: Keys, query_pe: Tensor, position: Tensor
) -> tuple[Tensor, Keys]:
    if layer.skip_first_layer_pe:
        queries = layer.self_attn(q=queries, k=queries, v=queries)
    else:
        q = queries + query_pe
        queries = queries + layer.self_attn(q=q, k=q, v=queries)
    queries = layer.norm1(queries)
    to_image = _token_to_image(layer.cross_attn_token_to_image, queries + query_pe, keys, position)
    queries = layer.norm2(queries + to_image)
    queries = layer.norm3(queries + layer.mlp(queries))
    changed = _image_to_token(
        layer.cross_attn_image_to_token, keys, position, queries + query_pe, queries
    )
    return queries, DenseKeys(layer.norm4(changed))


def _heads(x: Tensor, heads: int) -> Tensor:
    """[n, K, heads · d] → [n, heads, K, d]."""
    out: Tensor = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return out


def _token_to_image(attention: Attention, rows: Tensor, keys: Keys, position: Tensor) -> Tensor:
    """Tokens attend to the image: rows [n, K, C] → [n, K, C]."""
    q = _heads(attention.q_proj(rows), attention.num_heads)
    q = q * q.shape[-1] ** -0.5
    weights = torch.softmax(keys.match(q, attention.k_proj, position), dim=-1)
    mixed = keys.collect(weights, attention.v_proj)
    out: Tensor = attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return out


def _image_to_token(
    attention: Attention, keys: Keys, position: Tensor, rows: Tensor, values: Tensor
) -> Tensor:
    """The image attends to tokens and adds what it finds: rows (with position) and values [n, K, C]
    → new keys [n, P, C].
    """
    heads = attention.num_heads
    k = _heads(attention.k_proj(rows), heads)
    logits = keys.match(k * k.shape[-1] ** -0.5, attention.q_proj, position)
    # Before the axes are turned: a softmax over 5 numbers that lie side by side takes a CPU longer
    # than any product of the block.
    weights = _softmax_of_few(logits).flatten(1, 2).transpose(1, 2)
    v = _heads(attention.v_proj(values), heads)
    # Output projection on K · heads value rows instead of on P pixels. A pixel's weights sum to 1
    # in each head, so its bias can be theirs.
    out_weight = attention.out_proj.weight.T.reshape(heads, v.shape[-1], -1)
    moved = v @ out_weight + attention.out_proj.bias / heads
    return keys.plus(weights, moved.flatten(1, 2))


def _softmax_of_few(logits: Tensor) -> Tensor:
    """``softmax(logits, dim=2)`` over a short axis; in a float32 graph, written out: [n, H, K, P].

    ONNX Runtime turns the axes for a softmax over any but the last, and then has few numbers a row:
    three times the time (measured, 1.32). In less than float32 the parts would be rounded.
    """
    if not exporting() or logits.dtype != torch.float32:
        return torch.softmax(logits, dim=2)
    exponentials = (logits - logits.amax(dim=2, keepdim=True)).exp()
    return exponentials / exponentials.sum(dim=2, keepdim=True)
