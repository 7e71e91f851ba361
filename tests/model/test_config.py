"""Configurations: JSON there and back, and sizes that do not fit one another."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from open_clip.transformer import QuickGELU
from segment_anything import sam_model_registry
from segment_anything.modeling.transformer import Attention

from escnet import PRESETS, EscNetConfig, build_model, preset
from escnet_runtime.errors import InputError
from escnet_runtime.ppg import PpgConstants
from tests.model.models import narrow_large

Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize("config", [*PRESETS.values(), narrow_large()], ids=lambda c: c.name)
def test_a_configuration_survives_json(config: EscNetConfig) -> None:
    read = json.loads(json.dumps(config.to_dict()))
    assert read == config.to_dict()
    assert EscNetConfig.from_dict(read) == config


def test_constants_and_templates_survive_json() -> None:
    config = dataclasses.replace(
        preset("tiny"),
        ppg=PpgConstants(temperature=0.1 + 0.2, alpha=1 / 3, regions=3, iterations=0),
        templates=("a {}", "ein {} · 猫"),
    )
    assert EscNetConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_fields_that_are_younger_than_a_configuration_mean_the_papers_form() -> None:
    data = preset("tiny").to_dict()
    for field in ("in_blocks", "prompts"):
        del data["sam"][field]
    assert EscNetConfig.from_dict(data) == preset("tiny")
    assert "prompts" not in data["sam"]  # the caller's dictionary is left as it is


def test_prompts_are_checked_without_json_too() -> None:
    sam = dataclasses.replace(preset("tiny").sam, prompts="circles")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"sam\.prompts is 'circles', expected one of points\+"):
        dataclasses.replace(preset("tiny"), sam=sam)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused_without_json_too(number: float) -> None:
    """JSON has none of them, so a checkpoint with one could be written and not be read."""
    tiny = preset("tiny")
    for changes in (
        {"image_mean": (0.0, number, 0.0)},
        {"image_std": (1.0, number, 1.0)},
        {"sam": dataclasses.replace(tiny.sam, mask_logit_scale=number)},
    ):
        with pytest.raises(InputError, match=f"configuration 'tiny': .*{number}.*expected"):
            dataclasses.replace(tiny, **changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(colour=1), r"unknown key 'colour'"),
        (lambda d: d["clip"].update(depth=3), r"\$\.clip: unknown key 'depth'"),
        (lambda d: d.pop("blocks"), r"missing blocks"),
        (lambda d: d["sam"].pop("heads"), r"\$\.sam: missing heads"),
        (lambda d: d.update(clip=None), r"\$\.clip: expected an object, got NoneType"),
        (lambda d: d["clip"].update(image_size="128"), r"image_size: expected int, got str '128'"),
        (lambda d: d["clip"].update(quick_gelu=0), r"quick_gelu: expected bool, got int 0"),
        (lambda d: d["clip"].update(skip_layers=[1]), r"expected a list of 2 entries, got 1"),
        (lambda d: d.update(blocks=4.0), r"blocks: expected int, got float"),
        (lambda d: d.update(templates=["{}", 3]), r"templates\[1\]: expected str, got int"),
        (lambda d: d["ppg"].update(alpha=2.0), r"alpha is 2\.0"),
        (lambda d: d["sam"].update(prompts="circles"), r"prompts: expected one of points\+masks"),
        (lambda d: d["sam"].update(in_blocks=1), r"in_blocks: expected bool, got int 1"),
    ],
)
def test_what_is_no_configuration_is_refused(change: Change, message: str) -> None:
    data = preset("tiny").to_dict()
    change(data)
    with pytest.raises(InputError, match=message):
        EscNetConfig.from_dict(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["clip"].update(image_size=130), "130 is not a multiple.*instance 136"),
        (lambda d: d["clip"].update(image_size=0), r"clip\.image_size is 0, expected at least 1"),
        (lambda d: d["clip"].update(image_size=7), "7 is not a multiple of patch_size 8.*8"),
        (lambda d: d["clip"].update(image_size=264), "grid of 33×33 tokens does not divide"),
        (lambda d: d["clip"].update(image_size=320), "1600 tokens, expected at most 1024"),
        (lambda d: d["fusion"].update(window=0), r"fusion\.window is 0"),
        (lambda d: d["fusion"].update(heads=3), r"hidden_dim is 32, expected a multiple of 3"),
        (lambda d: d["clip"].update(vision_head_width=48), "multiple of 48"),
        (lambda d: d["clip"].update(text_heads=5), "multiple of 5"),
        (lambda d: d["sam"].update(heads=64), r"sam\.embed_dim is 64, expected a multiple of 128"),
        (lambda d: d["sam"].update(mask_channels=6), "multiple of 4"),
        (lambda d: d["sam"].update(mask_channels=4), "mask_channels is 4, expected at least 8"),
        (lambda d: d["decoder"].update(channels=[48, 36]), r"channels\[1\] is 36"),
        (lambda d: d["decoder"].update(channels=[-48, 32]), "expected at least 1"),
        (lambda d: d["decoder"].update(skip_channels=[32, 16]), "less than the 32 channels"),
        (lambda d: d["clip"].update(skip_layers=[1, 5]), "expected blocks from 0 to 4"),
        (lambda d: d["clip"].update(skip_layers=[-1, 3]), "expected blocks from 0 to 4"),
        (lambda d: d.update(blocks=-1), "blocks is -1, expected ≥ 0"),
        # A checkpoint of a stranger's: each would be built, for hours, before it is compared.
        (lambda d: d.update(blocks=10**5), "blocks is 100000, expected at most 256"),
        (lambda d: d["clip"].update(vision_layers=10**5), r"vision_layers is 1.*at most 256"),
        (lambda d: d["sam"].update(depth=10**30), r"sam\.depth is 1.*at most 256"),
        (lambda d: d["clip"].update(vocab_size=10**30), r"vocab_size is 1.*at most 1,048,576"),
        (lambda d: d["decoder"].update(channels=[32, 10**12]), "channels is 1.*at most 1,048,576"),
        # A mask [length, length] that no file holds: 40 GB for a checkpoint of a few megabytes.
        (lambda d: d["clip"].update(context_length=10**5), "length is 100000, expected 3 to 4,096"),
        # What would be refused later: by the tokenizer, by a bundle, by nobody while it trains.
        (lambda d: d["clip"].update(context_length=2), "context_length is 2, expected 3 to"),
        (lambda d: d["clip"].update(vocab_size=513), "vocab_size is 513, expected 514 to 49,408"),
        (lambda d: d["clip"].update(vocab_size=49409), "vocab_size is 49409, expected 514 to"),
        (lambda d: d["clip"].update(vision_layers=1), "vision_layers is 1, expected at least 2"),
        (
            lambda d: d["clip"].update(image_size=8192, patch_size=512),
            r"clip\.image_size is 8192, expected at most 4,096",
        ),
        (lambda d: d.update(image_std=[1.0, 0.0, 1.0]), "image_std: got .*std finite and at"),
        (lambda d: d.update(image_mean=[11.0, 0.0, 0.0]), "image_mean .*within ±10"),
        (lambda d: d["sam"].update(mask_logit_scale=1e5), r"scale is 100000\.0.*within ±10,000"),
        (lambda d: d.update(templates=[]), "templates: Expected at least one template"),
        (lambda d: d.update(templates=["{}", "a cat"]), 'templates: .*exactly one "{}".*a cat'),
        (lambda d: d.update(templates=["{}"] * 1025), "1,025 templates, expected at most 1,024"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change: Change, message: str) -> None:
    data = preset("tiny").to_dict()
    change(data)
    with pytest.raises(InputError, match=f"configuration 'tiny': .*{message}"):
        EscNetConfig.from_dict(data)


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'huge'; there are tiny, vit-b-16, vit-l-14-336"):
        preset("huge")


@pytest.mark.parametrize(("name", "grid"), [("tiny", 16), ("vit-b-16", 24), ("vit-l-14-336", 24)])
def test_grids_of_the_presets(name: str, grid: int) -> None:
    assert preset(name).grid == grid
    assert preset(name).logits == 4 * grid


@pytest.mark.parametrize(("name", "clip_millions"), [("vit-b-16", 149.9), ("vit-l-14-336", 427.9)])
def test_the_large_presets_have_clips_size(name: str, clip_millions: float) -> None:
    with torch.device("meta"):
        net = build_model(preset(name))
    assert {parameter.device.type for parameter in net.parameters()} == {"meta"}
    count = sum(parameter.numel() for parameter in net.clip.parameters())
    assert count / 1e6 == pytest.approx(clip_millions, abs=0.05)


@pytest.mark.parametrize("name", ["vit-b-16", "vit-l-14-336"])
def test_the_large_presets_have_sams_decoder(name: str) -> None:
    """In what no tensor of its file shows as well: with other heads its weights would fit, and mean
    nothing.
    """
    with torch.device("meta"):
        block = build_model(preset(name)).esc_blocks[0].sam
        sam = sam_model_registry["vit_b"]()
    transformers = block.transformer, sam.mask_decoder.transformer
    for ours, theirs in (transformers, (block.prompt_encoder, sam.prompt_encoder)):
        shapes = {key: value.shape for key, value in theirs.state_dict().items()}
        assert {key: value.shape for key, value in ours.state_dict().items()} == shapes
    heads, expected = (
        {key: part.num_heads for key, part in one.named_modules() if isinstance(part, Attention)}
        for one in transformers
    )
    assert len(expected) > 1
    assert heads == expected


def odd() -> EscNetConfig:
    """What no preset has, in fields that change no tensor's shape."""
    tiny = preset("tiny")
    return dataclasses.replace(
        tiny,
        name="odd",
        clip=dataclasses.replace(tiny.clip, quick_gelu=True, text_heads=8, vision_head_width=16),
        sam=dataclasses.replace(tiny.sam, heads=8, mask_logit_scale=3.0),
        fusion=dataclasses.replace(tiny.fusion, heads=4, window=4),
        decoder=dataclasses.replace(tiny.decoder, norm_group=4),
    )


@pytest.mark.parametrize("config", [*PRESETS.values(), odd()], ids=lambda c: c.name)
def test_a_model_is_built_as_configured_where_no_tensor_shows_it(config: EscNetConfig) -> None:
    """Weights would load into another model, and mean nothing there."""
    with torch.device("meta"):
        net = build_model(config)
    clip, fusion, decoder = config.clip, config.fusion, config.decoder
    gelu = QuickGELU if clip.quick_gelu else torch.nn.GELU
    for tower, heads in (
        (net.clip.visual.transformer, clip.vision_width // clip.vision_head_width),
        (net.clip.transformer, clip.text_heads),
    ):
        for block in tower.resblocks:
            assert block.attn.num_heads == heads
            assert type(block.mlp.gelu) is gelu
    for block in net.esc_blocks:
        assert block.sam.transformer.num_heads == config.sam.heads
        assert block.sam.mask_logit_scale == config.sam.mask_logit_scale
        assert block.text_guidance.attention.heads == fusion.heads
        layers = [*block.image_guidance.layers]
        assert [(one.heads, one.window) for one in layers] == 2 * [(fusion.heads, fusion.window)]
    for stage, channels in zip(
        (net.decoder.first, net.decoder.second), decoder.channels, strict=True
    ):
        for norm in (stage.norm1, stage.norm2):
            assert norm.num_groups * decoder.norm_group == channels
