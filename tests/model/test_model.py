"""The whole model: shared form against plain form, chunks, order, seeds, gradients."""

import dataclasses
import re
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import escnet.model
from escnet import EscNet, build_model, preset
from escnet.clip import dense_features
from escnet.model import Trace
from escnet.ppg import TorchPrompts, pseudo_prompts
from escnet_runtime.errors import InputError
from escnet_runtime.ppg import PpgConstants
from tests.model.models import image, model, randomise, relative_l2, text, tokens

both = pytest.mark.parametrize("name", ["tiny", "narrow-large"])


def replay(monkeypatch: pytest.MonkeyPatch, prompts: list[TorchPrompts]) -> None:
    """Make the model take these prompts, so that rounding cannot decide differently.

    Two ways to add the same numbers differ in the last bit, which may move a pixel over the
    threshold; the decisions themselves are tested with the prompt generator.
    """
    given: Iterator[TorchPrompts] = iter(prompts)
    monkeypatch.setattr(escnet.model, "pseudo_prompts", lambda scores, constants: next(given))


def rows(prompts: TorchPrompts, index: Tensor) -> TorchPrompts:
    fields = dataclasses.fields(prompts)
    return TorchPrompts(**{field.name: getattr(prompts, field.name)[index] for field in fields})


@both
@pytest.mark.parametrize("count", [1, 2, 19])
def test_the_model_equals_its_plain_form(
    name: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = model(name)
    inputs = image(net.config), text(net.config, count)
    got = net.trace(*inputs)
    replay(monkeypatch, got.prompts)
    expected = net.trace(*inputs, plain=True)
    assert got.logits.shape == (count, net.config.logits, net.config.logits)
    assert relative_l2(got.logits, expected.logits) <= 1e-5
    assert len(got.scores) == net.config.blocks + 1
    for mine, plain in zip(got.scores, expected.scores, strict=True):
        # Scores are small beside what the read-out sums up, so their rounding weighs more.
        assert relative_l2(mine, plain) <= 5e-5


def test_forward_and_forward_plain_are_the_traces_logits() -> None:
    net = model()
    inputs = image(net.config), text(net.config, 2)
    assert torch.equal(net(*inputs), net.trace(*inputs).logits)
    assert torch.equal(net.forward_plain(*inputs), net.trace(*inputs, plain=True).logits)


@pytest.mark.parametrize(
    ("wrong_image", "wrong_text", "named"),
    [
        (lambda given: given[0], lambda given: given, "image has the shape [3, "),
        (lambda given: given[..., :-1], lambda given: given, "expected [1, 3, "),
        (lambda given: given.expand(2, -1, -1, -1), lambda given: given, "encode_image takes"),
        (lambda given: given, lambda given: given[:0], "at least one category"),
        (lambda given: given, lambda given: given[0], "text has the shape ["),
        (lambda given: given, lambda given: given[:, 1:], "from encode_text"),
    ],
)
def test_inputs_of_other_shapes_are_refused_by_name(
    wrong_image: Callable[[Tensor], Tensor], wrong_text: Callable[[Tensor], Tensor], named: str
) -> None:
    net = model()
    with pytest.raises(InputError, match=re.escape(named)):
        net(wrong_image(image(net.config)), wrong_text(text(net.config, 2)))


def test_image_text_and_every_block_reach_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    net = model()
    base = net.trace(image(net.config), text(net.config, 3))
    replay(monkeypatch, base.prompts * 2)
    other_image = net(image(net.config, seed=1), text(net.config, 3))
    other_text = net(image(net.config), text(net.config, 3, seed=1))
    assert relative_l2(other_image, base.logits) > 1e-3
    assert relative_l2(other_text, base.logits) > 1e-3


def test_prompts_reach_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    net = model()
    inputs = image(net.config), text(net.config, 3)
    base = net.trace(*inputs)
    other = net.trace(image(net.config, seed=1), inputs[1])
    replay(monkeypatch, other.prompts)
    assert relative_l2(net(*inputs), base.logits) > 1e-5


def test_prompts_are_made_with_the_models_own_constants() -> None:
    """Not with those that all presets have."""
    constants = PpgConstants(temperature=0.3, alpha=0.7, iterations=1)
    config = dataclasses.replace(preset("tiny"), ppg=constants)
    net = randomise(build_model(config, seed=1)).requires_grad_(False)
    found = net.trace(image(config), text(config, 3))
    assert len(found.prompts) == config.blocks
    others = []
    for scores, prompts in zip(found.scores, found.prompts, strict=False):
        expected = pseudo_prompts(scores, constants)
        assert torch.equal(prompts.regions, expected.regions)
        assert torch.equal(prompts.points, expected.points)
        assert torch.equal(prompts.probabilities, expected.probabilities)
        others.append(torch.equal(pseudo_prompts(scores, PpgConstants()).regions, prompts.regions))
    assert not any(others)


@both
def test_permuted_categories_give_permuted_logits(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, order = model(name), torch.tensor([3, 0, 5, 1, 4, 2])
    picture, words = image(net.config), text(net.config, 6)
    base = net.trace(picture, words)
    replay(monkeypatch, [rows(prompts, order) for prompts in base.prompts])
    assert relative_l2(net(picture, words[order]), base.logits[order]) <= 1e-5


def in_chunks(net: EscNet, picture: Tensor, words: Tensor, base: Trace, size: int) -> Tensor:
    """The logits as the runtime gets them, in chunks of groups of ``size``, the last one padded."""
    count = len(words)
    padded = -count % size
    index = torch.cat([torch.arange(count), torch.zeros(padded, dtype=torch.int64)])
    weight = torch.cat([torch.full((count,), 1.0 / count), torch.zeros(padded)])
    chunks = list(zip(index.split(size), weight.reshape(-1, 1, size), strict=True))
    encoded = net.encode_image(picture)
    features = encoded.block_features
    states = [net.correlate(encoded.features, words[chosen]) for chosen, _ in chunks]
    for block, prompts in zip(net.esc_blocks, base.prompts, strict=True):
        parts = [(rows(prompts, chosen), share) for chosen, share in chunks]
        enhanced = sum_of(
            block.sam(features, p.points, p.point_labels, p.regions, p.probabilities, share)
            for p, share in parts
        )
        features, guidance = block.fuse(features, enhanced[None])
        guided = [
            block.refine_image(embedding, guidance, words[chosen], share)
            for (_, embedding), (chosen, share) in zip(states, chunks, strict=True)
        ]
        kv, k = sum_of(g.kv_sum for g in guided), sum_of(g.k_sum for g in guided)
        states = [
            block.refine_text(g.embedding, words[chosen], scores, kv, k)[::-1]
            for g, (scores, _), (chosen, _) in zip(guided, states, chunks, strict=True)
        ]
    logits = [net.decode(embedding, encoded.skip0, encoded.skip1) for _, embedding in states]
    return torch.cat(logits)[:count]


def sum_of(parts: Iterator[Tensor]) -> Tensor:
    return torch.cat(list(parts)).sum(0)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_chunks_of_categories_give_the_same_logits(size: int) -> None:
    net = model()
    picture, words = image(net.config), text(net.config, 7)
    base = net.trace(picture, words)
    assert relative_l2(in_chunks(net, picture, words, base, size), base.logits) <= 1e-5


def test_the_correlation_is_the_cosine() -> None:
    net = model()
    picture, words = image(net.config), text(net.config, 3)
    encoded = net.encode_image(picture)
    scores, embedding = net.correlate(encoded.features, words)
    norm = encoded.features.norm(dim=1)
    torch.testing.assert_close(norm, torch.ones_like(norm))
    expected = torch.einsum("chw,nc->nhw", encoded.features[0], words)
    torch.testing.assert_close(scores, expected)
    assert float(scores.abs().max()) <= 1.0
    weight, bias = net.correlation_embedding.weight[:, 0, 0, 0], net.correlation_embedding.bias
    assert bias is not None
    torch.testing.assert_close(embedding, scores[..., None] * weight + bias)


def test_encoded_images_have_the_shapes_of_the_graphs() -> None:
    net = model("narrow-large")
    config, grid = net.config, net.config.grid
    encoded = net.encode_image(torch.cat([image(config), image(config, 1)]))
    skip0, skip1 = config.decoder.skip_channels
    assert encoded.features.shape == (2, config.clip.embed_dim, grid, grid)
    assert encoded.block_features.shape == (2, config.sam.embed_dim, grid, grid)
    assert encoded.skip0.shape == (2, skip0, 2 * grid, 2 * grid)
    assert encoded.skip1.shape == (2, skip1, 4 * grid, 4 * grid)


@both
def test_an_encoded_image_is_of_clips_features_and_of_two_earlier_blocks(name: str) -> None:
    """SAM's blocks see CLIP's features before they are brought to unit norm; the earlier of the two
    blocks gives the smaller skip.
    """
    net, picture = model(name), image(model(name).config)
    dense = dense_features(net.clip.visual, picture, net.config.clip.skip_layers)
    grid = (net.config.grid, net.config.grid)
    maps = dense.projected.transpose(1, 2).unflatten(2, grid)
    encoded, project = net.encode_image(picture), net.block_projection
    assert relative_l2(encoded.block_features, F.conv2d(maps, project.weight, project.bias)) <= 1e-5
    assert relative_l2(encoded.features, F.normalize(maps, dim=1)) <= 1e-5
    for got, skip, earlier in (
        (encoded.skip0, net.skip0, dense.skips[0]),
        (encoded.skip1, net.skip1, dense.skips[1]),
    ):
        assert relative_l2(got, skip.forward_plain(earlier)) <= 1e-5
        assert bool((got >= 0).all())
    assert relative_l2(net.skip0.forward_plain(dense.skips[1]), encoded.skip0) > 1e-3


def test_a_model_of_another_image_size() -> None:
    config = preset("tiny")
    larger = dataclasses.replace(config, clip=dataclasses.replace(config.clip, image_size=192))
    net = build_model(larger).requires_grad_(False)
    logits = net(image(larger), text(larger, 2))
    assert logits.shape == (2, 96, 96)
    assert logits.isfinite().all()


def test_weights_depend_on_the_seed_alone() -> None:
    first = build_model(preset("tiny"), seed=3).state_dict()
    torch.manual_seed(99)
    again, other = (build_model(preset("tiny"), seed=seed).state_dict() for seed in (3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["clip.text_projection"], other["clip.text_projection"])


def test_building_leaves_the_callers_random_state_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(seed: int) -> None:
        raise AssertionError("a GPU's generator was seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", forbidden)
    before = torch.get_rng_state()
    build_model(preset("tiny"), seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_new_model_is_in_evaluation_mode_with_gradients() -> None:
    net = build_model(preset("tiny"))
    assert not any(module.training for module in net.modules())
    assert all(parameter.requires_grad for parameter in net.parameters())


# What SAM and CLIP have and ESC-Net does not use, and the read-out after the last block, which
# would only prompt a block that is not there.
UNUSED = (
    "clip.logit_scale",
    "point_embeddings.0.",
    "point_embeddings.2.",
    "point_embeddings.3.",
    "no_mask_embed.",
    "final_attn_token_to_image.",
    "norm_final_attn.",
    "blocks.3.text_guidance.read_norm.",
    "blocks.3.text_guidance.read_out.",
)


# Prompts are relative to the peak of a map: what is added to all of it has a gradient of 0, give or
# take rounding.
CONSTANT = ("read_out.bias", "read_norm.bias")


def test_every_parameter_that_is_used_gets_a_gradient() -> None:
    net = randomise(build_model(preset("tiny"), seed=1))
    with torch.no_grad():
        for block in net.esc_blocks:  # of a steep map only the peak, which gets none, is foreground
            block.text_guidance.read_out.weight.mul_(0.02)
    words = net.encode_text(tokens(net.config, (1, 4, 9, 2)))
    net(image(net.config), words).mean().backward()
    parameters = {n: p for n, p in net.named_parameters() if not n.endswith(CONSTANT)}
    without = {n for n, p in parameters.items() if p.grad is None or not p.grad.any()}
    assert without == {n for n in parameters if any(part in n for part in UNUSED)}
    gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
