"""The paper's ablations as configurations: each is built, computes what it says, and is trained."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from segment_anything.utils.amg import batched_mask_to_box
from torch import Tensor

import escnet.model
from escnet import EscNet, EscNetConfig, build_model, preset
from escnet.config import SamPrompts
from escnet.ppg import TorchPrompts, pseudo_prompts
from escnet.sam import SamBlock, bounding_boxes
from escnet.train.groups import Rates, parameter_groups
from escnet.weights import load_checkpoint, load_sam, save_checkpoint
from escnet.weights.state import WeightsError
from escnet_export.graphs import model_graphs
from escnet_runtime.errors import InputError
from escnet_runtime.ppg import PpgConstants
from escnet_runtime.ppg import pseudo_prompts as runtime_prompts
from tests.model.models import image, randomise, relative_l2, text, tokens

# What adds the same to a whole map: its gradient is 0 but for rounding.
CONSTANT = ("read_out.bias", "read_norm.bias")


def small(
    *,
    prompts: SamPrompts = "points+masks",
    in_blocks: bool = True,
    blocks: int = 2,
    regions: int = 5,
) -> EscNetConfig:
    """A quick ESC-Net on an 8×8 grid."""
    tiny = preset("tiny")
    clip = dataclasses.replace(
        tiny.clip, image_size=64, vision_layers=3, text_layers=1, skip_layers=(0, 1)
    )
    sam = dataclasses.replace(tiny.sam, prompts=prompts, in_blocks=in_blocks)
    ppg = dataclasses.replace(tiny.ppg, regions=regions)
    return dataclasses.replace(tiny, name="small", clip=clip, sam=sam, ppg=ppg, blocks=blocks)


VARIANTS = {
    "base": small(),
    "points": small(prompts="points"),
    "masks": small(prompts="masks"),
    "boxes": small(prompts="boxes"),
    "without": small(in_blocks=False),
    "blocks-0": small(blocks=0),
    "blocks-1": small(blocks=1),
    "regions-1": small(regions=1),
    "regions-3": small(regions=3),
    "regions-8": small(regions=8),
    "points-1": small(prompts="points", regions=1),
    "boxes-1": small(prompts="boxes", regions=1),
}
every = pytest.mark.parametrize("name", VARIANTS)


@functools.cache
def variant(name: str) -> EscNet:
    """Shared by the tests: none may change it."""
    return randomise(build_model(VARIANTS[name], seed=1)).requires_grad_(False)


def replay(monkeypatch: pytest.MonkeyPatch, prompts: list[TorchPrompts]) -> None:
    """Make the model take these prompts, so that rounding cannot decide differently."""
    given: Iterator[TorchPrompts] = iter(prompts)
    monkeypatch.setattr(escnet.model, "pseudo_prompts", lambda scores, constants: next(given))


@every
@pytest.mark.parametrize("count", [1, 19])
def test_a_variant_equals_its_plain_form(
    name: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = variant(name)
    inputs = image(net.config), text(net.config, count)
    got = net.trace(*inputs)
    replay(monkeypatch, got.prompts)
    expected = net.trace(*inputs, plain=True)
    assert relative_l2(got.logits, expected.logits) <= 1e-5
    assert len(got.scores) == net.config.blocks + 1
    assert len(got.prompts) == (net.config.blocks if net.config.sam.in_blocks else 0)


@every
def test_a_variant_trains_what_has_a_gradient_and_nothing_else(name: str) -> None:
    net = randomise(build_model(VARIANTS[name], seed=1))
    groups = parameter_groups(net, Rates(small=2e-6, large=2e-4, weight_decay=1e-4))
    trained = {name for group in groups for name in group.parameters}
    words = net.encode_text(tokens(net.config, (1, 4, 9, 2)))
    net(image(net.config), words).square().mean().backward()
    without = {n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()}
    assert not without & trained
    rest = {n for n, _ in net.named_parameters() if not n.startswith("clip.")} - trained
    assert {n for n in rest if not n.endswith(CONSTANT)} <= without


@every
def test_a_step_changes_what_is_trained(name: str) -> None:
    net = build_model(VARIANTS[name], seed=1)
    groups = parameter_groups(net, Rates(small=1e-3, large=1e-3, weight_decay=0.0))
    parameters = {n: p for group in groups for n, p in group.parameters.items()}
    before = {name: one.detach().clone() for name, one in parameters.items()}
    optimizer = torch.optim.SGD(parameters.values(), lr=1e4)
    logits = net(image(net.config), net.encode_text(tokens(net.config, (1, 4, 9, 2))))
    logits.square().mean().backward()
    optimizer.step()
    changed = [n for n in parameters if not torch.equal(before[n], parameters[n])]
    assert len(changed) > 0.8 * len(parameters)


@every
def test_a_variants_checkpoint_gives_the_variant_back(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(variant(name), path, trained=False, weights="test")
    loaded = load_checkpoint(path).model
    assert loaded.config == VARIANTS[name]
    inputs = image(loaded.config), text(loaded.config, 2)
    with torch.no_grad():  # PyTorch may take other kernels where gradients are wanted
        assert torch.equal(loaded(*inputs), variant(name)(*inputs))


def test_only_the_shown_prompts_matter() -> None:
    """Points, masks and the extent of the regions reach the SAM block only where they should."""
    scores = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1))
    prompts = pseudo_prompts(scores, PpgConstants(temperature=1.0, alpha=0.6))
    features = torch.randn(1, 64, 8, 8, generator=torch.Generator().manual_seed(2))
    weight = torch.tensor([[0.5, 0.25, 0.25]])
    for name, (by_points, by_masks, by_regions) in {
        "base": (True, True, True),
        "points": (True, False, False),
        "masks": (False, True, True),
        "boxes": (False, False, True),
    }.items():
        block = variant(name).esc_blocks[0].sam

        def run(block: SamBlock, **changed: Tensor) -> Tensor:
            one = dataclasses.replace(prompts, **changed)
            out: Tensor = block(
                features, one.points, one.point_labels, one.regions, one.probabilities, weight
            )
            return out

        base = run(block)
        moved = run(block, points=prompts.points.flip(2))
        fainter = run(block, probabilities=prompts.probabilities / 2)
        turned = run(block, regions=prompts.regions.transpose(1, 2).contiguous())
        assert (relative_l2(moved, base) > 1e-6) == by_points, name
        assert (relative_l2(fainter, base) > 1e-6) == by_masks, name
        assert (relative_l2(turned, base) > 1e-6) == by_regions, name


def test_boxes_are_those_sam_makes_of_masks() -> None:
    scores = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(3))
    scores[3] = torch.nan
    regions = pseudo_prompts(scores, PpgConstants(temperature=1.0, alpha=0.7)).regions
    inside = regions[:, None] == torch.arange(5, dtype=torch.int32)[None, :, None, None]
    got = bounding_boxes(regions, 5)
    assert got.dtype == torch.float32
    assert inside.any((2, 3)).any()
    assert torch.equal(got, batched_mask_to_box(inside).float())


def test_a_box_by_hand() -> None:
    regions = torch.full((1, 4, 5), -1, dtype=torch.int32)
    regions[0, 1, 2:5] = 1
    regions[0, 3, 2] = 1
    got = bounding_boxes(regions, 2)
    assert got.tolist() == [[[0, 0, 0, 0], [2, 1, 4, 3]]]


def test_boxes_are_embedded_as_sam_does() -> None:
    block = variant("boxes").esc_blocks[0].sam
    boxes = torch.tensor([[[0.0, 0.0, 7.0, 7.0], [2.0, 1.0, 4.0, 3.0], [5.0, 5.0, 5.0, 5.0]]])
    labels = torch.tensor([[1, 1, -1]], dtype=torch.int32)
    got = block.embed_boxes(boxes, labels)[0].unflatten(0, (3, 2))
    expected = block.prompt_encoder._embed_boxes(boxes[0])
    torch.testing.assert_close(got[:2], expected[:2])
    nothing = block.prompt_encoder.not_a_point_embed.weight
    assert torch.equal(got[2], nothing.expand(2, -1))


def test_one_token_that_is_no_point_stands_for_any_number_of_them() -> None:
    """Of "masks" each category has one: SAM's own transformer makes the same of five."""
    block = variant("masks").esc_blocks[0].sam
    one = block.prompt_encoder.not_a_point_embed.weight[None]
    maps = torch.randn(1, 64, 8, 8, generator=torch.Generator().manual_seed(4))
    position = block.position().T.reshape(1, 64, 8, 8)
    few, many = (block.transformer(maps, position, one.expand(1, n, -1))[1] for n in (1, 5))
    assert relative_l2(many, few) <= 1e-5


@pytest.mark.parametrize("name", ["points", "boxes", "without"])
def test_scores_that_no_gradient_reaches_stay_those_of_clip(name: str) -> None:
    net = build_model(VARIANTS[name], seed=1)
    with torch.inference_mode():
        scores = net.trace(image(net.config), text(net.config, 3)).scores
    assert len(scores) > 1
    assert all(torch.equal(one, scores[0]) for one in scores)


def test_without_blocks_the_decoder_reads_the_correlation() -> None:
    net = variant("blocks-0")
    encoded = net.encode_image(image(net.config))
    words = text(net.config, 3)
    _, embedding = net.correlate(encoded.features, words)
    got = net(image(net.config), words)
    assert torch.equal(got, net.decode(embedding, encoded.skip0, encoded.skip1))


def test_without_a_sam_block_the_image_still_guides() -> None:
    net = variant("without")
    assert not net.esc_blocks
    assert not any(".sam." in name or ".merge." in name for name in net.state_dict())
    encoded, words = net.encode_image(image(net.config)), text(net.config, 3)
    base = net.segment(encoded, words).logits
    other = encoded._replace(block_features=-encoded.block_features)
    assert relative_l2(net.segment(other, words).logits, base) > 1e-3


@pytest.mark.parametrize("regions", [1, 3, 8])
def test_torch_and_numpy_agree_on_any_number_of_regions(regions: int) -> None:
    constants = PpgConstants(temperature=0.5, alpha=0.6, regions=regions)
    scores = torch.rand(6, 8, 8, generator=torch.Generator().manual_seed(regions))
    ours, theirs = pseudo_prompts(scores, constants), runtime_prompts(scores.numpy(), constants)
    assert ours.points.shape == (6, regions, 2)
    for field in ("points", "point_labels", "regions"):
        assert torch.equal(getattr(ours, field), torch.from_numpy(getattr(theirs, field)))


@pytest.mark.parametrize("name", ["without", "blocks-0"])
def test_sam_has_no_place_in_a_model_without_its_block(name: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no SAM block: . blocks, sam\.in_blocks is"):
        load_sam(variant(name), tmp_path / "sam.safetensors")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("points", r"sam\.prompts is 'points', expected 'points\+masks'"),
        ("masks", r"sam\.prompts is 'masks'"),
        ("boxes", r"sam\.prompts is 'boxes'"),
        ("without", r"sam\.in_blocks is False, expected True"),
        ("blocks-0", r"blocks is 0, expected at least 1"),
    ],
)
def test_a_bundle_of_a_variant_without_graphs_is_refused(name: str, message: str) -> None:
    with pytest.raises(
        InputError,
        match=f"configuration 'small': {message}.* in PyTorch alone, where escnet-train validates",
    ):
        model_graphs(variant(name))


@pytest.mark.parametrize("name", ["blocks-1", "regions-1", "regions-8"])
def test_other_numbers_of_blocks_and_regions_have_graphs(name: str) -> None:
    graphs = model_graphs(variant(name))
    assert len(graphs) == 4 + 4 * VARIANTS[name].blocks
    points = next(graph for graph in graphs if graph.name == "esc0_sam").inputs[1]
    assert points.shape == ("n", VARIANTS[name].ppg.regions, 2)
