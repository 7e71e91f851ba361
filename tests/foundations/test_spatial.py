"""The first weights of tiny's vision tower know where patches lie."""

import pytest
import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor

from escnet import preset
from escnet.build import build_clip
from escnet.foundations.spatial import spatial_start

CONFIG = preset("tiny")
GRID, WIDTH = CONFIG.grid, CONFIG.clip.vision_width


@pytest.fixture(scope="module")
def tower() -> VisionTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        visual = build_clip(CONFIG).visual
        assert isinstance(visual, VisionTransformer)
        spatial_start(visual, GRID)
    return visual.requires_grad_(False)


def test_near_patches_have_like_positions_and_no_two_the_same(tower: VisionTransformer) -> None:
    table = tower.positional_embedding[1:].unflatten(0, (GRID, GRID))
    here = table[8, 4]
    along, down = ((table[8] - here).norm(dim=1), (table[:, 4] - here).norm(dim=1))
    assert along.argmin() == 4
    assert down.argmin() == 8
    assert (along[4:9].diff() > 0).all()
    assert (down[8:13].diff() > 0).all()
    distances = torch.cdist(table.flatten(0, 1), table.flatten(0, 1))
    distances.fill_diagonal_(torch.inf)
    assert distances.min() > 0.05


def product_of(tower: VisionTransformer, block: int) -> tuple[Tensor, Tensor]:
    """Of a block: the mean over heads of Wq'Wk, and Wo Wv; both act on tokens."""
    attention = tower.transformer.resblocks[block].attn
    query, key, value = attention.in_proj_weight.chunk(3)
    heads = attention.num_heads
    parts = [q.T @ k for q, k in zip(query.chunk(heads), key.chunk(heads), strict=True)]
    return torch.stack(parts).mean(0), attention.out_proj.weight @ value


@pytest.mark.parametrize("block", [0, -1])
def test_attention_begins_near_the_identity(tower: VisionTransformer, block: int) -> None:
    matching, passing = product_of(tower, block)
    off = ~torch.eye(WIDTH, dtype=torch.bool)
    assert matching.diagonal().mean() > 10 * matching[off].mean().abs()
    assert matching.diagonal().mean() > 0.1
    assert passing.diagonal().mean().item() == pytest.approx(-0.4, abs=0.05)
    assert passing[off].mean().abs() < 0.01
