"""The SAM block computes what segment_anything's modules compute."""

import functools

import pytest
import torch
import torch.nn.functional as F
from segment_anything.modeling.prompt_encoder import PromptEncoder
from segment_anything.modeling.transformer import TwoWayTransformer
from torch import Tensor

from escnet.groups import group_weights
from escnet.ppg import TorchPrompts, pseudo_prompts
from escnet.sam import SamBlock
from escnet.two_way import DenseKeys, LowRankKeys, _softmax_of_few, two_way
from escnet_runtime.ppg import PpgConstants
from tests.model.models import model, randomise, relative_l2

GRID = (6, 7)
PIXELS = GRID[0] * GRID[1]


@functools.cache
def transformer() -> TwoWayTransformer:
    """SAM ViT-B's."""
    torch.manual_seed(0)
    module = TwoWayTransformer(depth=2, embedding_dim=256, num_heads=8, mlp_dim=2048)
    return randomise(module).requires_grad_(False)


@functools.cache
def sam_block() -> SamBlock:
    """SAM ViT-B's modules on a small grid that is not square."""
    torch.manual_seed(1)
    encoder = PromptEncoder(
        embed_dim=256, image_embedding_size=GRID, input_image_size=GRID, mask_in_chans=16
    )
    return SamBlock(randomise(encoder), transformer(), 10.0).requires_grad_(False)


def prompts_of(count: int, grid: tuple[int, int] = GRID, seed: int = 0) -> TorchPrompts:
    """Prompts of smooth random maps, so with used and unused regions; the first has no point."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, 3, 3, generator=generator)
    scores = F.interpolate(coarse, size=grid, mode="bicubic")[:, 0] * 0.1
    if count > 1:
        scores[0] = torch.nan
    return pseudo_prompts(scores, PpgConstants())


def run(block: SamBlock, features: Tensor, prompts: TorchPrompts, weight: Tensor) -> Tensor:
    out: Tensor = block(*arguments(features, prompts, weight))
    return out


def arguments(features: Tensor, prompts: TorchPrompts, weight: Tensor) -> tuple[Tensor, ...]:
    return (
        features,
        prompts.points,
        prompts.point_labels,
        prompts.regions,
        prompts.probabilities,
        weight,
    )


def random_inputs(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images [n, P, C], their position [P, C] and tokens [n, 5, C], large enough to matter."""
    generator = torch.Generator().manual_seed(count)
    shapes = ((count, PIXELS, 256), (PIXELS, 256), (count, 5, 256))
    images, position, tokens = (2 * torch.randn(shape, generator=generator) for shape in shapes)
    return images, position, tokens


def sams_own(images: Tensor, position: Tensor, tokens: Tensor) -> Tensor:
    """``TwoWayTransformer``'s image side, [n, P, C]."""
    maps = images.transpose(1, 2).unflatten(2, GRID)
    encoding = position.T.unflatten(1, GRID).expand_as(maps)
    keys: Tensor = transformer()(maps, encoding, tokens)[1]
    return keys


@pytest.mark.parametrize("count", [1, 2, 19])
def test_two_way_of_dense_keys_is_sams_transformer(count: int) -> None:
    images, position, tokens = random_inputs(count)
    got = two_way(transformer(), DenseKeys(images), position, tokens)
    assert relative_l2(got, sams_own(images, position, tokens)) <= 1e-5


@pytest.mark.parametrize("count", [1, 2, 19])
def test_two_way_of_low_rank_keys_is_sams_transformer(count: int) -> None:
    _, position, tokens = random_inputs(count)
    shared = torch.randn(PIXELS, 256)
    mask, basis = torch.randn(count, PIXELS, 16), torch.randn(256, 16)
    got = two_way(transformer(), LowRankKeys(shared, mask, basis), position, tokens)
    assert relative_l2(got, sams_own(shared + mask @ basis.T, position, tokens)) <= 1e-5


@pytest.mark.parametrize("scale", [1.0, 1e4, 3e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_softmax_in_a_graph_is_a_softmax(
    scale: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = torch.finfo(dtype).max / 8
    logits = (torch.randn(2, 3, 5, 7) * scale).clamp(-largest, largest).to(dtype)
    expected = torch.softmax(logits, dim=2)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True, raising=False)
    got = _softmax_of_few(logits)
    assert got.dtype == dtype
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


def test_every_input_of_two_way_matters() -> None:
    images, position, tokens = random_inputs(2)
    base = two_way(transformer(), DenseKeys(images), position, tokens)
    assert relative_l2(two_way(transformer(), DenseKeys(-images), position, tokens), base) > 0.01
    assert relative_l2(two_way(transformer(), DenseKeys(images), -position, tokens), base) > 0.01
    assert relative_l2(two_way(transformer(), DenseKeys(images), position, -tokens), base) > 0.01


def test_points_are_embedded_as_sam_does() -> None:
    block = sam_block()
    points = torch.tensor([[[0.0, 0.0], [6.0, 5.0], [3.0, 2.0], [0.0, 0.0], [1.0, 4.0]]] * 2)
    labels = torch.tensor([[1, 1, 1, -1, -1], [1, -1, -1, -1, 1]], dtype=torch.int32)
    expected = block.prompt_encoder._embed_points(points, labels, pad=False)
    assert torch.equal(block.embed_points(points, labels), expected)


@pytest.mark.parametrize("name", ["tiny", "narrow-large"])
def test_positions_are_sams_on_the_models_grid(name: str) -> None:
    block = model(name).esc_blocks[0].sam
    expected = block.prompt_encoder.get_dense_pe()[0].flatten(1).T
    assert torch.equal(block.position(), expected)


def test_positions_are_sams_on_a_grid_that_is_not_square() -> None:
    expected = sam_block().prompt_encoder.get_dense_pe()[0].flatten(1).T
    assert torch.equal(sam_block().position(), expected)


def test_a_point_lies_where_its_pixel_does() -> None:
    """A foreground point's embedding is its pixel's position plus SAM's constant for a point."""
    block = sam_block()
    x, y = 4, 2
    got = block.embed_points(torch.tensor([[[float(x), float(y)]]]), torch.tensor([[1]]))[0, 0]
    constant = block.prompt_encoder.point_embeddings[1].weight[0]
    torch.testing.assert_close(got - constant, block.position()[y * GRID[1] + x])


def test_masks_are_the_mean_of_sams_features_of_each_region() -> None:
    block, prompts = sam_block(), prompts_of(4)
    features = block.embed_masks(prompts.regions, prompts.probabilities, prompts.point_labels)
    got = block.prompt_encoder.mask_downscaling[6](features)
    used = []
    for n in range(1, 4):
        valid = [k for k in range(5) if prompts.point_labels[n, k] == 1]
        used.append(len(valid))
        total = torch.zeros(1, 256, *GRID)
        for k in valid:
            probability = torch.where(prompts.regions[n] == k, prompts.probabilities[n], 0.0)
            logits = 10.0 * (2.0 * probability - 1.0)
            size = block.prompt_encoder.mask_input_size
            resized = F.interpolate(logits[None, None], size=size, mode="bilinear")
            total += block.prompt_encoder._embed_masks(resized)
        assert relative_l2(got[n], total[0] / len(valid)) <= 1e-5
    assert min(used) >= 1


def test_a_category_without_a_point_has_no_mask_features() -> None:
    prompts = prompts_of(2)
    assert (prompts.point_labels[0] == -1).all()
    masks = sam_block().embed_masks(prompts.regions, prompts.probabilities, prompts.point_labels)
    assert masks[0].abs().max() == 0.0
    assert masks[1].abs().max() > 0.0


@pytest.mark.parametrize("count", [1, 2, 19])
@pytest.mark.parametrize("name", ["sam-vit-b", "tiny", "narrow-large"])
def test_the_block_equals_its_plain_form(name: str, count: int) -> None:
    block = sam_block() if name == "sam-vit-b" else model(name).esc_blocks[1].sam
    grid = block.prompt_encoder.image_embedding_size
    features = torch.randn(1, block.prompt_encoder.embed_dim, *grid)
    weight = group_weights(count, device=features.device)
    inputs = arguments(features, prompts_of(count, grid), weight * torch.rand(weight.shape))
    got = block(*inputs)
    assert got.shape == (len(weight), *features.shape[1:])
    assert got.dtype == torch.float32
    assert relative_l2(got, block.forward_plain(*inputs)) <= 1e-5


def test_the_sums_of_chunks_are_the_sums_of_all() -> None:
    """Groups of three here: nothing in the model knows their size but the weights' shape."""
    block, prompts, features = sam_block(), prompts_of(7), torch.randn(1, 256, *GRID)
    weight = torch.tensor([[1 / 7] * 3, [1 / 7] * 3, [1 / 7, 0, 0]])
    whole = run(block, features, prompts, weight)
    chunks = [(slice(0, 6), weight[:2]), (slice(6, 7), weight[2:])]
    parts = [run(block, features, rows(prompts, chunk), share) for chunk, share in chunks]
    assert relative_l2(torch.cat(parts), whole) <= 1e-6


def test_padding_of_weight_zero_changes_nothing() -> None:
    block, prompts, features = sam_block(), prompts_of(5), torch.randn(1, 256, *GRID)
    weight = torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0.0, 0.0]])
    short = run(block, features, rows(prompts, slice(0, 3)), weight)
    assert relative_l2(run(block, features, prompts, weight), short) <= 1e-6


def rows(prompts: TorchPrompts, chunk: slice) -> TorchPrompts:
    return TorchPrompts(
        points=prompts.points[chunk],
        point_labels=prompts.point_labels[chunk],
        regions=prompts.regions[chunk],
        probabilities=prompts.probabilities[chunk],
    )
