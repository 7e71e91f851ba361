"""CLIP's forward passes are open_clip's own, where open_clip has them."""

import pytest
import torch
import torch.nn.functional as F

from escnet.clip import attend, dense_features, encode_text, unit_norm
from tests.model.models import image, model, relative_l2, tokens

both = pytest.mark.parametrize("name", ["tiny", "narrow-large"])


def test_attend_is_scaled_dot_product_attention() -> None:
    torch.manual_seed(0)
    q, k, v = (3 * torch.randn(2, 4, length, 8) for length in (5, 7, 7))
    mask = torch.where(torch.rand(5, 7) < 0.3, -1e4, 0.0)
    expected = F.scaled_dot_product_attention(q, k, v)
    assert relative_l2(attend(q, k, v), expected) < 1e-6
    masked = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert relative_l2(attend(q, k, v, mask), masked) < 1e-6
    assert relative_l2(masked, expected) > 0.1


def test_unit_norm_survives_fp16_and_zero() -> None:
    large = torch.full((2, 4), 6e4, dtype=torch.float16)  # the squares overflow float16
    assert torch.equal(unit_norm(large), torch.full((2, 4), 0.5))
    assert torch.equal(unit_norm(torch.zeros(1, 4)), torch.zeros(1, 4))


@both
def test_skips_are_the_outputs_of_open_clips_blocks(name: str) -> None:
    net = model(name)
    picture, layers = image(net.config), net.config.clip.skip_layers
    got = dense_features(net.clip.visual, picture, layers).skips
    expected = net.clip.visual.forward_intermediates(
        picture, indices=list(layers), output_fmt="NLC", intermediates_only=True
    )["image_intermediates"]
    for mine, theirs in zip(got, expected, strict=True):
        assert relative_l2(mine, theirs) < 1e-5


@both
def test_dense_features_are_maskclips(name: str) -> None:
    """MaskCLIP drops the last block's attention: each token takes its own value and no other.

    Attention that may look at nothing but the token itself says the same, with open_clip's block.
    """
    net = model(name)
    visual, picture = net.clip.visual, image(net.config)
    x = visual._embeds(picture)
    *earlier, last = visual.transformer.resblocks
    for block in earlier:
        x = block(x)
    itself = torch.full((x.shape[1], x.shape[1]), -torch.inf).fill_diagonal_(0.0)
    expected = (visual.ln_post(last(x, attn_mask=itself)) @ visual.proj)[:, 1:]
    got = dense_features(visual, picture, net.config.clip.skip_layers).projected
    assert relative_l2(got, expected) < 1e-5
    attending = (visual.ln_post(last(x)) @ visual.proj)[:, 1:]
    assert relative_l2(got, attending) > 1e-3


def test_dense_features_of_a_batch_are_those_of_its_images() -> None:
    net = model()
    pictures = torch.cat([image(net.config, seed) for seed in range(2)])
    together = dense_features(net.clip.visual, pictures, net.config.clip.skip_layers)
    alone = dense_features(net.clip.visual, pictures[1:], net.config.clip.skip_layers)
    assert relative_l2(together.projected[1:], alone.projected) < 1e-6


@both
def test_text_embeddings_are_open_clips(name: str) -> None:
    net = model(name)
    ids = tokens(net.config, (1, 4, 9, net.config.clip.context_length - 2))
    got = encode_text(net.clip, ids)
    expected = net.clip.encode_text(ids.long(), normalize=True)
    assert got.dtype == torch.float32
    assert relative_l2(got, expected) < 1e-5


def test_text_embeddings_do_not_depend_on_the_padded_length() -> None:
    net = model()
    ids = tokens(net.config, (1, 4, 9))
    expected = net.clip.encode_text(ids.long(), normalize=True)
    for length in (11, 12, 40):
        assert relative_l2(encode_text(net.clip, ids[:, :length]), expected) < 1e-5
