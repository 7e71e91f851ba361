"""What the small CLIP and the small SAM are trained on and towards."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.transformer import VisionTransformer

from escnet import build_model, preset
from escnet.build import build_clip
from escnet.clip import encode_text
from escnet.foundations.clip import ClipRates, ClipTask, CropPool, _by_length
from escnet.foundations.correlation import CorrelationTask
from escnet.foundations.sam import SamTask, build_sam
from escnet.train.categories import CategorySampling
from escnet.train.data import TrainingSample
from escnet.weights import load_clip, load_sam
from escnet_runtime.console import Console
from escnet_runtime.world import CaptionedCrop
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
        CropPool(side=64, scenes=2),
        rates=ClipRates(matrices=1e-2, rest=1e-3),
        seed=0,
        processes=1,
        validation=lambda model: {"miou": model.clip.state_dict()["logit_scale"].item()},
        console=Console(quiet=True),
    )


def crop(seed: int, spoken: str, *seen: str, left: int = 0, top: int = 0) -> CaptionedCrop:
    image = np.random.default_rng(seed).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    caption = f"A photo of a {spoken} in the scene"
    return CaptionedCrop(
        image=image,
        captions=(caption,),
        spoken=(spoken,),
        seen=seen,
        wrong=(),
        wrong_about=(),
        left=left,
        top=top,
    )


def loss(task: ClipTask, *crops: CaptionedCrop) -> float:
    with torch.no_grad():
        return float(task.module(task.collate(list(crops)))["loss"])


def visual(clip: torch.nn.Module) -> VisionTransformer:
    found = clip.visual
    assert isinstance(found, VisionTransformer)
    return found


def test_a_caption_that_is_true_of_another_crop_is_no_wrong_answer(task: ClipTask) -> None:
    names = [name for name in task._names if len(name.split()) == 3][:2]
    one = crop(0, names[0], names[0])
    other = crop(1, names[1], names[1])
    both = crop(1, names[1], names[1], names[0])  # the first caption is true of it too
    assert loss(task, one, both) < loss(task, one, other)
    # With nothing wrong to choose, there is nothing to learn.
    same = crop(1, names[0], names[0])
    assert loss(task, one, same) == pytest.approx(0.0, abs=1e-6)


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


def test_a_wrong_caption_makes_the_choice_harder_unless_it_is_true(task: ClipTask) -> None:
    names = [name for name in task._names if len(name.split()) == 3][:2]
    plain = crop(0, names[0], names[0])

    def with_wrong(*seen: str) -> CaptionedCrop:
        text = f"A photo of a {names[1]} in the scene"
        return replace(plain, seen=seen, wrong=(text,), wrong_about=(names[1],))

    assert loss(task, with_wrong(names[0])) > loss(task, plain) + 1e-3
    # It is in the window after all: nobody may learn that it is not.
    assert loss(task, with_wrong(*names)) == pytest.approx(loss(task, plain), abs=1e-6)


def test_the_correlation_is_taught_through_attention_alone(tmp_path: Path) -> None:
    model = build_model(preset("tiny"), seed=3)
    names = ("red ring", "blue star", "wooden floor")
    task = CorrelationTask(
        model,
        _Halves(),
        names,
        categories=CategorySampling(per_image=2),
        seed=0,
        rate=3e-3,
        weight_decay=0.0,
        validation=lambda _: {"miou": 0.0},
    )
    trained = {name for group in task.groups for name in group.parameters}
    assert trained == {
        name for name, _ in model.named_parameters() if ".attn." in name and name.startswith("clip")
    }
    parameters = [one for group in task.groups for one in group.parameters.values()]
    optimiser = torch.optim.AdamW(parameters)
    batch = task.collate([task.samples[0], task.samples[1]])
    losses = []
    for _ in range(12):
        found = task.module(batch)
        optimiser.zero_grad()
        found["loss"].backward()
        assert all(one.grad is not None for one in parameters)
        optimiser.step()
        losses.append(found["loss"].item())
    assert losses[-1] < 0.5 * losses[0]
    task.save(tmp_path / "tuned.safetensors", step=12)
    other = build_model(preset("tiny"), seed=4)
    load_clip(other, str(tmp_path / "tuned.safetensors"))
    want = model.clip.state_dict()
    assert all(torch.equal(value, want[n]) for n, value in other.clip.state_dict().items())


class _Halves:
    """One colour to the left, another one to the right."""

    def __getitem__(self, index: int) -> TrainingSample:
        image = np.full((128, 128, 3), 40 + index, np.uint8)
        image[:, 64:] = 200
        labels = np.zeros((128, 128), np.int64)
        labels[:, 64:] = 1 + index
        return TrainingSample(image=image, labels=labels)


def test_texts_are_encoded_as_they_would_be_alone(task: ClipTask) -> None:
    texts = ["a red ring", "A photo of a turquoise checkered triangle in the scene", "a calm sea"]
    for count in (1, 2, 3):
        tokens = torch.from_numpy(task._tokenizer.encode(texts[:count]))
        with torch.no_grad():
            got = _by_length(task._clip, tokens)
            want = encode_text(task._clip, tokens)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
