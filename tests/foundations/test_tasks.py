"""What the small CLIP and the small SAM are trained on and towards."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.transformer import VisionTransformer
from torchvision.ops import sigmoid_focal_loss

from escnet import build_model, preset
from escnet.build import build_clip
from escnet.clip import dense_features, encode_text, unit_norm
from escnet.foundations.clip import ClipRates, ClipTask, CropPool, _by_length, _Chanced
from escnet.foundations.sam import SamTask, _losses, build_sam
from escnet.train.segmentation import normalised
from escnet.weights import load_clip, load_sam
from escnet_runtime.console import Console
from escnet_runtime.world import CaptionedCrop, Wording
from escnet_runtime.world.captions import PROMPT_TEMPLATE
from tests.model.models import randomise


@pytest.fixture(scope="module")
def task() -> ClipTask:
    config = preset("tiny")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = randomise(build_clip(config))
    return ClipTask(
        config,
        clip,
        CropPool(side=64, scenes=2, crops=4),
        rates=ClipRates(matrices=1e-2, rest=1e-3),
        seed=0,
        processes=1,
        validation=lambda model, check: {"miou": model.clip.state_dict()["logit_scale"].item()},
        console=Console(quiet=True),
    )


def crop(seed: int, *spoken: str) -> CaptionedCrop:
    """Noise, all of it about the first name."""
    image = np.random.default_rng(seed).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    return CaptionedCrop(
        image=image,
        captions=tuple(PROMPT_TEMPLATE.format(name) for name in spoken),
        spoken=spoken,
        seen=spoken,
        wordings=(Wording(text=PROMPT_TEMPLATE, article=False),) * len(spoken),
        regions=np.zeros((64, 64), np.int8),
        left=0,
        top=0,
    )


def loss(task: ClipTask, *crops: CaptionedCrop, wrong: int = 0) -> float:
    samples = [_Chanced(crop=one, chance=np.random.default_rng(5)) for one in crops]
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("escnet.foundations.clip._WRONG", wrong)
        return float(task.module(task.collate(samples))["loss"])


def visual(clip: torch.nn.Module) -> VisionTransformer:
    found = clip.visual
    assert isinstance(found, VisionTransformer)
    return found


def test_a_patch_chooses_the_text_of_its_region_among_all(task: ClipTask) -> None:
    """Against the obvious way: pixel by pixel, region by region."""
    names = [name for name in task._names if len(name.split()) == 3][:3]
    one = crop(0, names[0], names[1])
    regions = np.full((64, 64), -1, np.int8)
    regions[:20, :33], regions[40:, 50:] = 0, 1
    one = replace(one, regions=regions)
    other = crop(1, names[2])
    clip, config = task._clip, task.config
    losses, weights = [], []
    with torch.no_grad():
        texts = encode_text(
            clip,
            torch.from_numpy(task._tokenizer.encode([PROMPT_TEMPLATE.format(n) for n in names])),
        )
        scale = clip.get_parameter("logit_scale").exp()
        for each, spoken in ((one, (0, 1)), (other, (2,))):
            pixels = normalised(config, torch.from_numpy(each.image)[None])
            positions = task.module._positions(torch.tensor([[0, 0]]), 8)  # type: ignore[operator]
            found = dense_features(visual(clip), pixels, config.clip.skip_layers, positions)
            likely = (scale * unit_norm(found.projected[0]) @ texts.T).log_softmax(1)
            likely = likely.unflatten(0, (8, 8)).repeat_interleave(8, 0).repeat_interleave(8, 1)
            for index, name in enumerate(spoken):
                mask = torch.from_numpy(each.regions == index)
                losses.append(-likely[mask][:, name].mean().item())
                weights.append(min(mask.sum().item() / 64 / 4, 1.0))
    want = sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights)
    assert loss(task, one, other) == pytest.approx(want, rel=1e-4)


def test_a_crop_takes_the_positions_it_has_in_its_scene(task: ClipTask) -> None:
    module = task.module
    corners = torch.tensor([[3, 5], [0, 0]])
    got = module._positions(corners, 8)  # type: ignore[operator]
    table = visual(task._clip).positional_embedding
    grid = table[1:].unflatten(0, (16, 16))
    assert torch.equal(got[0, 1:], grid[3:11, 5:13].flatten(0, 1))
    assert torch.equal(got[1, 1:], grid[:8, :8].flatten(0, 1))
    assert torch.equal(got[:, 0], table[:1].expand(2, -1))


def test_saved_foundations_fit_the_model(task: ClipTask, tmp_path: Path) -> None:
    folder = tmp_path
    config = preset("tiny")
    sam = SamTask(config, randomise(build_sam(config)), rate=1e-3, seed=0)
    task.save(folder / "clip.safetensors", step=1)
    sam.save(folder / "sam.safetensors", step=1)
    model = build_model(config)
    load_clip(model, str(folder / "clip.safetensors"))
    load_sam(model, folder / "sam.safetensors")
    assert torch.equal(visual(model.clip).proj, visual(task._clip).proj)
    want = sam._sam.mask_decoder.transformer.layers[0].mlp.lin1.weight
    for block in model.esc_blocks:
        assert torch.equal(block.sam.transformer.layers[0].mlp.lin1.weight, want)


def test_sam_asks_as_an_esc_block_does_and_all_it_trains_gets_a_gradient() -> None:
    config = preset("tiny")
    task = SamTask(config, build_sam(config), rate=1e-3, seed=0)
    samples = [task.samples[index] for index in range(12)]
    kinds = {(s.points is not None and s.points.shape[1], s.coarse is not None) for s in samples}
    assert kinds <= {(1, False), (5, False), (False, True), (5, True)}
    assert len(kinds) > 2
    for sample in samples:
        if sample.points is not None:  # SAM adds half a pixel itself
            x, y = sample.points.round().long().unbind(-1)
            inside = sample.masks[torch.arange(len(sample.masks))[:, None], y, x]
            assert (inside == 1).all()
    parameters = {n: p for g in task.groups for n, p in g.parameters.items()}
    task.module(task.collate(samples))["loss"].backward()
    assert not [name for name, one in parameters.items() if one.grad is None]


def test_sams_loss_is_of_the_best_of_its_masks() -> None:
    """SAM's appendix A: twenty parts of focal loss, one of dice, and how well its own quality of a
    mask, the IoU, was told; masks are shares of a cell.
    """
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4, 3, 8, 8, generator=generator)
    quality, masks = torch.rand(4, 3, generator=generator), torch.rand(4, 8, 8, generator=generator)
    losses, ious = _losses(logits, quality, masks)
    target, p = masks[:, None].expand_as(logits), logits.sigmoid()
    focal = sigmoid_focal_loss(logits, target, alpha=0.25, gamma=2).flatten(2).mean(2)
    both, each = (p * target).sum((2, 3)), p.sum((2, 3)) + target.sum((2, 3))
    wrong = 20 * focal + 1 - (2 * both + 1) / (each + 1)
    chosen = wrong.argmin(1)
    assert len(chosen.unique()) > 1
    for index, best in enumerate(chosen.tolist()):
        seen, there = logits[index, best] > 0, masks[index] > 0.5
        iou = int((seen & there).sum()) / int((seen | there).sum())
        assert ious[index].item() == pytest.approx(iou)
        want = wrong[index, best].item() + (quality[index, best].item() - iou) ** 2
        assert losses[index].item() == pytest.approx(want, rel=1e-5)


def test_sam_sees_other_scenes_with_another_seed() -> None:
    config = preset("tiny")
    first = SamTask(config, build_sam(config), rate=1e-3, seed=3).samples[0]
    again = SamTask(config, build_sam(config), rate=1e-3, seed=3).samples[0]
    other = SamTask(config, build_sam(config), rate=1e-3, seed=4).samples[0]
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, other.image)


def test_validation_is_of_the_clip_in_training(task: ClipTask) -> None:
    torch.nn.init.constant_(task._clip.get_parameter("logit_scale"), 1.25)
    assert task.validate() == {"miou": 1.25}


def test_wrong_captions_make_the_choice_harder(task: ClipTask) -> None:
    plain = crop(0, task._names[20])
    # With nothing wrong to choose, there is nothing to learn.
    assert loss(task, plain) == pytest.approx(0.0, abs=1e-6)
    assert loss(task, plain, wrong=585) > 0.5 * np.log(585)


def test_wrong_captions_are_others_for_each_batch_and_the_same_again(task: ClipTask) -> None:
    def about(index: int) -> list[str]:
        sample = task.samples[index]
        found = list(task._said(sample.chance, [sample.crop]))
        assert all(wording in sample.crop.wordings for _, wording in found)
        count = len(sample.crop.spoken)
        assert [name for name, _ in found[:count]] == [*sample.crop.spoken]
        return [name for name, _ in found[count:]]

    first = about(0)
    assert len(first) == len(set(first)) == 256
    assert first == about(0)
    assert first != about(1)


def test_half_of_the_crops_are_mirrored_where_a_mirror_shows_them(task: ClipTask) -> None:
    crops, samples = task.samples._crops, task.samples  # type: ignore[attr-defined]
    mirrored = 0
    for index in range(64):
        plain, seen = crops[index], samples[index].crop
        assert seen.spoken == plain.spoken
        if not np.array_equal(seen.image, plain.image):
            mirrored += 1
            # A whole scene with the crop in its place, seen in a mirror.
            scene = np.zeros((128, 128, 3), np.uint8)
            rows = slice(plain.top, plain.top + 64)
            scene[rows, plain.left : plain.left + 64] = plain.image
            assert np.array_equal(scene[:, ::-1][rows, seen.left : seen.left + 64], seen.image)
            assert np.array_equal(seen.regions, plain.regions[:, ::-1])
    assert 20 < mirrored < 44


def test_texts_are_encoded_as_they_would_be_alone(task: ClipTask) -> None:
    texts = ["a red ring", "A photo of a turquoise checkered triangle in the scene", "a calm sea"]
    for count in (1, 2, 3):
        tokens = torch.from_numpy(task._tokenizer.encode(texts[:count]))
        with torch.no_grad():
            got = _by_length(task._clip, tokens)
            want = encode_text(task._clip, tokens)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
