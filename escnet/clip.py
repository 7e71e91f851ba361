"""CLIP's two encoders as ESC-Net uses them: open_clip's modules and weights, our forward passes.

open_clip's own forward gives one vector an image; dense features need the last block without
attention, and ``nn.MultiheadAttention`` exports a third more nodes than an explicit Q, K, V.
"""

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

__all__ = ["DenseFeatures", "attend", "dense_features", "encode_text", "unit_norm"]


class DenseFeatures(NamedTuple):
    """What the vision tower gives: tokens are the image patches, row by row, class token left out.

    ``projected`` is [b, P, D] in CLIP's joint space, not normalised; ``skips`` are outputs of two
    earlier blocks, [b, P, width].
    """

    projected: Tensor
    skips: tuple[Tensor, Tensor]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention, explicit QKᵀ: [..., l, d], [..., m, d], [..., m, d] → [..., l, d].

    Fused attention in fp16 is what broke other projects' engines, and TensorRT-RTX 1.7 does not
    build ONNX's ``Attention`` operator; this form builds everywhere.
    """
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        logits = logits + mask
    return torch.softmax(logits, dim=-1) @ v


def unit_norm(x: Tensor) -> Tensor:
    """``x`` divided by its Euclidean norm over the last axis, computed and returned in float32.

    ``F.normalize``'s eps of 1e-12 is 0 in fp16, and a sum of squares may leave fp16's range.
    """
    x = x.float()
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + 1e-12)


def dense_features(
    visual: VisionTransformer,
    image: Tensor,
    skip_layers: tuple[int, int],
    positions: Tensor | None = None,
) -> DenseFeatures:
    """Dense image features, MaskCLIP's way (as CAT-Seg): the last block without attention.

    The paper is silent on how CLIP, trained for one vector an image, gives dense features.

    Args:
        visual: open_clip's vision tower.
        image: normalised image [b, 3, S, S].
        skip_layers: the blocks whose outputs are returned beside the features.
        positions: positional embeddings of class token and patches, [P + 1, width] or
            [b, P + 1, width]; those of the whole image by default.
    """
    if positions is None:
        positions = visual.positional_embedding
    x = visual.conv1(image.to(visual.conv1.weight.dtype)).flatten(2).transpose(1, 2)
    cls = visual.class_embedding.expand(x.shape[0], 1, -1)
    x = visual.ln_pre(torch.cat([cls, x], dim=1) + positions)
    blocks: list[ResidualAttentionBlock] = list(visual.transformer.resblocks)
    skips: dict[int, Tensor] = {}
    # Each block computes in the type of its own weights: an export may keep one of them wider.
    for index, block in enumerate(blocks[:-1]):
        x = _block(x.to(block.ln_1.weight.dtype), block)
        if index in skip_layers:
            skips[index] = x[:, 1:]
    x = _value_block(x[:, 1:].to(blocks[-1].ln_1.weight.dtype), blocks[-1])
    x = visual.ln_post(x.to(visual.ln_post.weight.dtype))
    first, second = skip_layers
    return DenseFeatures(x @ visual.proj, (skips[first], skips[second]))


def encode_text(clip: CLIP, tokens: Tensor) -> Tensor:
    """Unit-norm text embeddings, float32 [t, D], of int32 tokens [t, l] with l ≤ context length.

    The tower is causal, so tokens behind the end token change nothing: l need only be the length
    of the longest text. The end token has the largest id and appears once (the tokenizer sees to
    it), which gives the pooling of open_clip's arg max without an ArgMax.
    """
    length = tokens.shape[1]
    x = clip.token_embedding(tokens) + clip.positional_embedding[:length]
    position = torch.arange(length, device=tokens.device)
    causal = position[None, :] > position[:, None]
    # -1e4 is out of reach for any logit here and fits fp16; -inf would give NaN in a padded row.
    mask = torch.where(causal, -1e4, 0.0).to(x.dtype)
    for block in clip.transformer.resblocks:
        x = _block(x, cast(ResidualAttentionBlock, block), mask)
    end = (tokens == clip.vocab_size - 1).to(x.dtype)
    pooled = (clip.ln_final(x) * end[:, :, None]).sum(dim=1)
    return unit_norm(pooled @ cast(Tensor, clip.text_projection))


def _block(x: Tensor, block: ResidualAttentionBlock, mask: Tensor | None = None) -> Tensor:
    """One pre-norm transformer block of open_clip: [b, l, c] → [b, l, c]."""
    attention = cast(nn.MultiheadAttention, block.attn)
    qkv = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
    heads = attention.num_heads
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    mixed = attend(q, k, v, mask).transpose(1, 2).flatten(2)
    x = x + block.ls_1(attention.out_proj(mixed))
    return cast(Tensor, x + block.ls_2(block.mlp(block.ln_2(x))))


def _value_block(x: Tensor, block: ResidualAttentionBlock) -> Tensor:
    """The last block with each token attending to itself alone: value, output projection, MLP."""
    attention = cast(nn.MultiheadAttention, block.attn)
    width = x.shape[-1]
    value = F.linear(
        block.ln_1(x), attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :]
    )
    x = x + block.ls_1(attention.out_proj(value))
    return cast(Tensor, x + block.ls_2(block.mlp(block.ln_2(x))))
