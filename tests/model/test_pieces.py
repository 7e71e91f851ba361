"""A chunk's tokens in pieces: what a float32 graph computes is what the whole computes."""

from collections import Counter

import pytest
import torch
from torch import nn

from escnet import EscNetConfig, preset
from escnet.groups import group_weights, sum_of_groups
from escnet.pieces import equal_pieces, tokens_at_once
from escnet.swin import GuidedSwinLayer, Mlp, token_count
from escnet_runtime.groups import GROUP
from tests.model.test_fusion import inputs

FLOAT32 = 4


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model takes the form that it has in a graph."""
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True, raising=False)


def pieces_of(tokens: int, hidden: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many tokens at once in an MLP with so many channels."""
    monkeypatch.setattr("escnet.pieces._BYTES", tokens * hidden * GROUP * FLOAT32)


@pytest.mark.usefixtures("graph")
@pytest.mark.parametrize("tokens", [1, 7, 64, 100, 200])
@pytest.mark.parametrize("count", [1, 2, 19])
@pytest.mark.parametrize("name", ["tiny", "narrow-large"])
def test_pieces_compute_what_the_whole_computes(
    name: str, count: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, embedding, guidance, words, scores = inputs(name, count)
    weight = group_weights(count, device=words.device)

    def fused() -> tuple[torch.Tensor, ...]:
        refined, kv, k = block.refine_image(embedding, guidance, words, weight)
        return refined, *block.refine_text(
            refined, words, scores, sum_of_groups(kv), sum_of_groups(k)
        )

    whole = fused()
    pieces_of(tokens, block.text_guidance.mlp.hidden, monkeypatch)
    assert tokens_at_once(embedding.flatten(1, 2), block.text_guidance.mlp.hidden) < 256
    for got, want in zip(fused(), whole, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("graph")
@pytest.mark.parametrize(("name", "pieces"), [("tiny", 1), ("vit-b-16", 4), ("vit-l-14-336", 4)])
def test_a_preset_is_cut_where_its_maps_are_large(name: str, pieces: int) -> None:
    config = preset(name)
    hidden = config.fusion.hidden_dim * config.fusion.mlp_ratio
    x = torch.empty(2, config.grid**2, config.fusion.hidden_dim)
    assert equal_pieces(x, hidden) == pieces
    for layer in layers_of(config):
        cut = layer.pieces(tokens_at_once(x, hidden))
        assert len(cut) == pieces
        assert sum(cut, Counter()) == sum(layer.pieces(x.shape[1]), Counter())


def layers_of(config: EscNetConfig) -> list[GuidedSwinLayer]:
    """The pair of Swin layers on that grid, without weights that matter."""
    window = config.fusion.window
    return [
        GuidedSwinLayer(
            query=nn.Linear(2, 1),
            key=nn.Linear(2, 1),
            value=nn.Linear(1, 1),
            output=nn.Linear(1, 1),
            mlp=Mlp(nn.Linear(1, 4), nn.Linear(4, 1)),
            norm1=nn.LayerNorm(1),
            norm2=nn.LayerNorm(1),
            heads=1,
            window=window,
            shift=shift,
            grid=(config.grid, config.grid),
        )
        for shift in (0, window // 2)
    ]


def test_areas_are_cut_into_pieces_in_their_order() -> None:
    first, second = layers_of(preset("vit-b-16"))
    assert first.pieces(144) == [{144: 1}] * 4
    assert second.pieces(144) == [{144: 1}, {72: 2}, {72: 2}, {36: 4}]
    assert second.pieces(1) == [{144: 1}, *[{72: 1}] * 4, *[{36: 1}] * 4]  # no area is cut
    [whole] = second.pieces(576)
    assert list(whole.items()) == [(144, 1), (72, 4), (36, 4)]
    assert token_count(whole) == len(second.order()) == 576


@pytest.mark.usefixtures("graph")
@pytest.mark.parametrize(
    ("tokens", "at_once", "pieces"),
    [(256, 256, 1), (256, 255, 2), (256, 100, 4), (169, 100, 13), (7, 3, 7), (1, 0, 1), (6, 0, 6)],
)
def test_equal_pieces_are_as_few_as_divide_the_tokens(
    tokens: int, at_once: int, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces_of(at_once, 8, monkeypatch)
    assert equal_pieces(torch.empty(3, tokens, 2), 8) == pieces


def test_nothing_is_cut_but_float32_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half precision is for GPUs, which want large products, and eager PyTorch trains."""
    pieces_of(4, 8, monkeypatch)
    x = torch.empty(1, 16, 2)
    assert equal_pieces(x, 8) == 1
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True, raising=False)
    assert equal_pieces(x, 8) == 4
    assert equal_pieces(x.half(), 8) == equal_pieces(x.bfloat16(), 8) == 1
