"""Vision-language fusion: what is shared, summed and masked equals the plain definition."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from escnet.block import EscBlock
from escnet.fusion import CategoryAttention
from escnet.groups import group_weights, sum_of_groups
from escnet.swin import GuidedSwinLayer
from escnet_runtime.groups import GROUP
from tests.model.models import model, relative_l2, text

both = pytest.mark.parametrize("name", ["tiny", "narrow-large"])


def inputs(name: str, count: int) -> tuple[EscBlock, Tensor, Tensor, Tensor, Tensor]:
    """A block, embedding [n, h, w, E], guidance [1, G, h, w], text [n, D] and scores [n, h, w]."""
    net = model(name)
    grid, hidden = net.config.grid, net.config.fusion.hidden_dim
    generator = torch.Generator().manual_seed(count)
    embedding = torch.randn(count, grid, grid, hidden, generator=generator)
    guidance = torch.randn(1, hidden, grid, grid, generator=generator)
    scores = torch.rand(count, grid, grid, generator=generator)
    return net.esc_blocks[0], embedding, guidance, text(net.config, count), scores


@both
@pytest.mark.parametrize("count", [1, 2, 19])
def test_fusion_equals_its_plain_form(name: str, count: int) -> None:
    block, embedding, guidance, words, scores = inputs(name, count)
    weight = group_weights(count, device=words.device)
    refined, kv, k = block.refine_image(embedding, guidance, words, weight)
    assert len(kv) == len(k) == -(-count // GROUP)
    kv, k = sum_of_groups(kv), sum_of_groups(k)
    got, got_scores = block.refine_text(refined, words, scores, kv, k)
    expected, expected_scores = block.refine_plain(embedding, guidance, words, scores)
    assert got.shape == embedding.shape
    assert got_scores.shape == scores.shape
    assert relative_l2(got, expected) <= 1e-5
    assert relative_l2(got_scores - scores, expected_scores - scores) <= 1e-5


def test_the_sums_of_chunks_are_the_sums_of_all() -> None:
    """Groups of three here: nothing in the model knows their size but the weights' shape."""
    block, embedding, guidance, words, _ = inputs("tiny", 7)
    weight = torch.tensor([[1 / 7] * 3, [1 / 7] * 3, [1 / 7, 0, 0]])
    whole = block.refine_image(embedding, guidance, words, weight)
    chunks = [(slice(0, 6), weight[:2]), (slice(6, 7), weight[2:])]
    parts = [block.refine_image(embedding[c], guidance, words[c], w) for c, w in chunks]
    assert relative_l2(torch.cat([part.embedding for part in parts]), whole.embedding) <= 1e-6
    for name in ("kv_sum", "k_sum"):
        sums = torch.cat([getattr(part, name) for part in parts])
        assert sums.dtype == torch.float32
        assert relative_l2(sums, getattr(whole, name)) <= 1e-6


def test_padding_of_weight_zero_changes_nothing() -> None:
    block, embedding, guidance, words, _ = inputs("tiny", 5)
    weight = torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0.0, 0.0]])
    padded = block.refine_image(embedding, guidance, words, weight)
    short = block.refine_image(embedding[:3], guidance, words[:3], weight)
    assert relative_l2(padded.kv_sum, short.kv_sum) <= 1e-6
    assert relative_l2(padded.k_sum, short.k_sum) <= 1e-6


def test_text_guidance_is_linear_attention_over_the_categories() -> None:
    """Σ_m φ(q_n)·φ(k_m) v_m / Σ_m φ(q_n)·φ(k_m), each pixel and head by itself, written out."""
    block, embedding, _, _, _ = inputs("tiny", 4)
    attention: CategoryAttention = block.text_guidance.attention
    x = embedding.flatten(1, 2)[:, :9]
    words = torch.randn(4, x.shape[2])
    kv, k = attention.sums(x, words, torch.full((1, 4), 0.25))
    got = attention.read(x, words, kv[0], k[0])
    both = torch.cat([x, words[:, None].expand_as(x)], dim=-1)
    heads = (attention.heads, -1)
    q = 1.0 + F.elu(attention.query(both)).unflatten(-1, heads)
    k = 1.0 + F.elu(attention.key(both)).unflatten(-1, heads)
    v = attention.value(x).unflatten(-1, heads)
    likeness = torch.einsum("nphd,mphd->phnm", q, k)
    share = likeness / likeness.sum(dim=-1, keepdim=True)
    expected = torch.einsum("phnm,mphd->nphd", share, v).flatten(2)
    assert relative_l2(got, expected) <= 1e-5


@both
def test_text_guidance_step_by_step(name: str) -> None:
    """Both forms end alike, so what comes before and behind the attention is written out here."""
    block, embedding, _, words, scores = inputs(name, 3)
    guidance = block.text_guidance
    width = embedding.shape[-1:]

    def normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
        return F.layer_norm(x, width, norm.weight, norm.bias, norm.eps)

    project, mlp, read_out = guidance.project_text, guidance.mlp, guidance.read_out
    told = normed(guidance.text_norm, F.linear(words, project.weight, project.bias))
    x = embedding.flatten(1, 2)
    weight = torch.full((1, 3), 1 / 3)
    kv, k = guidance.attention.sums(normed(guidance.norm1, x), told, weight)
    x = x + guidance.attention.read(normed(guidance.norm1, x), told, kv[0], k[0])
    inner = F.gelu(F.linear(normed(guidance.norm2, x), mlp.up.weight, mlp.up.bias))
    x = x + F.linear(inner, mlp.down.weight, mlp.down.bias)
    change = F.linear(normed(guidance.read_norm, x), read_out.weight, read_out.bias)
    got, got_scores = guidance.forward_plain(embedding, words, scores)
    assert relative_l2(got.flatten(1, 2), x) <= 1e-5
    assert relative_l2(got_scores - scores, change[..., 0].view_as(scores)) <= 1e-4


@both
def test_image_guidance_is_two_layers_with_the_normed_guidance(name: str) -> None:
    block, embedding, guidance, _, _ = inputs(name, 2)
    norm, x = block.image_guidance.guidance_norm, embedding
    guide = guidance.permute(0, 2, 3, 1)
    guide = F.layer_norm(guide, guide.shape[-1:], norm.weight, norm.bias, norm.eps)
    for layer in block.image_guidance.layers:
        assert isinstance(layer, GuidedSwinLayer)
        x = on_maps(layer, x, guide)
    assert relative_l2(block.image_guidance(embedding, guidance), x) <= 1e-5


def test_text_guidance_reads_other_categories_and_their_text() -> None:
    block, embedding, guidance, words, scores = inputs("tiny", 3)
    base, _ = block.refine_plain(embedding, guidance, words, scores)
    other = embedding.clone()
    other[2] = -other[2]
    moved, _ = block.refine_plain(other, guidance, words, scores)
    assert relative_l2(moved[0], base[0]) > 1e-4
    moved, _ = block.refine_plain(embedding, guidance, words[[0, 1, 0]], scores)
    assert relative_l2(moved[0], base[0]) > 1e-5


def on_maps(layer: GuidedSwinLayer, x: Tensor, guide: Tensor) -> Tensor:
    """What a layer makes of maps [n, h, w, C] and [1, h, w, G], as maps."""
    order = torch.tensor(layer.order())
    assert torch.equal(order.sort().values, torch.arange(x.shape[1] * x.shape[2]))
    tokens: Tensor = layer(x.flatten(1, 2)[:, order], guide.flatten(1, 2)[:, order])
    return tokens[:, order.argsort()].view_as(x)


def regions_of(length: int, window: int, shift: int) -> Tensor:
    """Which window a row falls in when windows start at ``shift`` and do not wrap around."""
    return (torch.arange(length) - shift).div(window, rounding_mode="floor")


@both
@pytest.mark.parametrize("index", [0, 1])
def test_a_swin_layer_is_attention_within_its_windows(name: str, index: int) -> None:
    """Rolled, cut and masked windows equal attention over all pixels that share a window."""
    block, embedding, guidance, _, _ = inputs(name, 2)
    layer = block.image_guidance.layers[index]
    assert isinstance(layer, GuidedSwinLayer)
    assert layer.shift == (0, layer.window // 2)[index]
    x, guide = embedding, guidance.permute(0, 2, 3, 1)
    side = x.shape[1]
    row = regions_of(side, layer.window, layer.shift)
    area = (row[:, None] * side + row[None, :]).flatten()
    apart = area[:, None] != area[None, :]
    normed = layer.norm1(x)
    both = torch.cat([normed, guide.expand_as(x)], dim=-1).flatten(1, 2)
    q, k, v = (
        part.unflatten(-1, (layer.heads, -1)).transpose(1, 2)
        for part in (layer.query(both), layer.key(both), layer.value(normed.flatten(1, 2)))
    )
    mask = torch.zeros(apart.shape).masked_fill(apart, -torch.inf)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    expected = x + layer.output(mixed.transpose(1, 2).flatten(2)).unflatten(1, (side, side))
    expected = expected + layer.mlp(layer.norm2(expected))
    assert relative_l2(on_maps(layer, x, guide), expected) <= 1e-5
    assert relative_l2(layer.forward_plain(x, guide), expected) <= 1e-5


@pytest.mark.parametrize(
    ("shift", "expected"),
    [
        (0, [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]),
        (1, [5, 6, 9, 10, 7, 11, 4, 8, 13, 14, 1, 2, 15, 12, 3, 0]),  # one whole, halves, corners
    ],
)
def test_tokens_that_attend_to_each_other_stand_together(shift: int, expected: list[int]) -> None:
    """A 4×4 map in windows of 2."""
    layer = copy.copy(model("tiny").esc_blocks[0].image_guidance.layers[0])
    assert isinstance(layer, GuidedSwinLayer)
    layer.window, layer.shift, layer.grid = 2, shift, (4, 4)
    assert layer.order() == expected


def test_the_shifted_layer_reaches_across_the_first_ones_windows() -> None:
    """Of the pair, only the second lets a pixel see beyond its 8×8 window."""
    block, embedding, guidance, _, _ = inputs("tiny", 1)
    changed = embedding.clone()
    changed[0, 7, 7] *= -1.0
    guide = guidance.permute(0, 2, 3, 1)
    reached = []
    for layer in block.image_guidance.layers:
        assert isinstance(layer, GuidedSwinLayer)
        before, after = (on_maps(layer, x, guide) for x in (embedding, changed))
        moved = after - before
        reached.append(bool(moved[0, 8, 8].abs().max() > 1e-6))
    assert reached == [False, True]


def test_fuse_adds_the_mean_of_the_categories() -> None:
    net = model()
    block, grid, width = net.esc_blocks[0], net.config.grid, net.config.sam.embed_dim
    features, enhanced = torch.randn(2, 1, width, grid, grid)
    out, guidance = block.fuse(features, enhanced)
    weight, bias = block.merge.weight[:, :, 0, 0], block.merge.bias
    assert bias is not None
    merged = torch.einsum("oc,nchw->nohw", weight, enhanced) + bias[:, None, None]
    assert relative_l2(out, features + merged) <= 1e-5
    assert torch.equal(guidance, block.guide(out))
