"""The same weights for an image of another size."""

from pathlib import Path

import pytest
import torch
from open_clip.model import resize_pos_embed

from escnet import build_model, preset
from escnet.build import build_clip
from escnet.weights import LoadedCheckpoint, load_checkpoint, resized, save_checkpoint, view_at
from escnet_runtime.errors import InputError
from tests.model.models import image, randomise, text

POSITIONS = "clip.visual.positional_embedding"


@pytest.fixture(scope="module")
def loaded() -> LoadedCheckpoint:
    model = randomise(build_model(preset("tiny").at_size(128), seed=1)).requires_grad_(False)
    return LoadedCheckpoint(model=model, trained=True, weights="made for a test")


@pytest.mark.parametrize("size", [64, 192, 256])
def test_all_but_clips_positions_is_as_it_was(loaded: LoadedCheckpoint, size: int) -> None:
    other = resized(loaded, size)
    before, after = loaded.model.state_dict(), other.model.state_dict()
    assert before.keys() == after.keys()
    assert [name for name in before if before[name].shape != after[name].shape] == [POSITIONS]
    assert all(torch.equal(before[name], after[name]) for name in before if name != POSITIONS)
    assert other.model.config == loaded.model.config.at_size(size)
    assert other.trained
    assert other.weights == "made for a test; positions resized from 128 px"
    assert not other.model.training
    config = other.model.config
    logits = other.model(image(config), text(config, 2))
    assert logits.shape == (2, size // 2, size // 2)
    assert logits.isfinite().all()


def test_positions_are_resized_as_open_clip_does(loaded: LoadedCheckpoint) -> None:
    theirs = {name: value.clone() for name, value in loaded.model.clip.state_dict().items()}
    resize_pos_embed(theirs, build_clip(preset("tiny").at_size(192)))
    found = resized(loaded, 192).model.state_dict()[POSITIONS]
    assert found.shape == (1 + 24 * 24, 128)
    assert torch.equal(found, theirs["visual.positional_embedding"])


def test_the_model_that_is_resized_is_left_as_it_was(loaded: LoadedCheckpoint) -> None:
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    other = resized(loaded, 64).model
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    after = loaded.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_its_own_size_is_the_model_itself(loaded: LoadedCheckpoint) -> None:
    assert resized(loaded, 128) is loaded


def test_a_checkpoint_of_it_has_the_new_size(loaded: LoadedCheckpoint, tmp_path: Path) -> None:
    other = resized(loaded, 64)
    save_checkpoint(other.model, tmp_path / "c.safetensors", trained=True, weights=other.weights)
    again = load_checkpoint(tmp_path / "c.safetensors").model
    assert again.config.clip.image_size == 64
    assert torch.equal(again.state_dict()[POSITIONS], other.model.state_dict()[POSITIONS])


@pytest.mark.parametrize("size", [0, -64, 100, 136, 320])
def test_sizes_that_do_not_divide_are_refused_with_those_that_do(
    loaded: LoadedCheckpoint, size: int
) -> None:
    with pytest.raises(InputError, match=rf"{size} px for 'tiny'; expected one of 64, 128, 192, 2"):
        resized(loaded, size)


def test_each_preset_knows_its_sizes() -> None:
    assert preset("tiny").image_sizes == (64, 128, 192, 256)
    assert preset("vit-b-16").image_sizes == (192, 384)
    assert preset("vit-l-14-336").image_sizes == (168, 336)
    for name in ("tiny", "vit-b-16", "vit-l-14-336"):
        config = preset(name)
        assert config.at_size(config.clip.image_size) == config
        assert {config.at_size(size).clip.image_size for size in config.image_sizes} == set(
            config.image_sizes
        )


@torch.no_grad()
def test_a_view_is_the_model_itself_at_another_size(loaded: LoadedCheckpoint) -> None:
    model = loaded.model
    view, copy = view_at(model, 192), resized(loaded, 192).model
    pixels, words = image(view.config), text(view.config, 3)
    assert torch.equal(view(pixels, words), copy(pixels, words))
    own = {id(parameter) for parameter in model.parameters()}
    others = [name for name, parameter in view.named_parameters() if id(parameter) not in own]
    assert others == [POSITIONS]
    assert not view.get_parameter(POSITIONS).requires_grad
    parameter = next(model.decoder.parameters())
    before = parameter.clone()
    parameter.add_(0.5)
    assert not torch.equal(view(pixels, words), copy(pixels, words))
    parameter.copy_(before)


def test_a_view_of_a_size_that_does_not_divide_is_refused(loaded: LoadedCheckpoint) -> None:
    with pytest.raises(InputError, match="100 px for 'tiny'"):
        view_at(loaded.model, 100)
