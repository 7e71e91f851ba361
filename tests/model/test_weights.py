"""Weights from files: what fits is copied, what does not is named, and nothing is half loaded."""

import argparse
import copy
import dataclasses
import json
import os
import pickle
import resource
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors
import torch
from open_clip import pretrained
from open_clip.model import resize_pos_embed
from safetensors.torch import save_file
from segment_anything.modeling.mask_decoder import MaskDecoder
from segment_anything.modeling.prompt_encoder import PromptEncoder
from segment_anything.modeling.transformer import TwoWayTransformer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from escnet import EscNet, EscNetConfig, build_model, preset
from escnet.build import build_clip
from escnet.weights import (
    WeightsError,
    load_checkpoint,
    load_clip,
    load_sam,
    save_checkpoint,
    write_tensors,
)
from escnet.weights.kinds import kind_of_file
from escnet_runtime.errors import InputError
from tests.model.models import image, relative_l2, text, tokens

State = dict[str, Tensor]

_FULL = preset("tiny")
# Tiny with fewer words and layers: small files, for disks are slow.
TINY = dataclasses.replace(
    _FULL,
    clip=dataclasses.replace(
        _FULL.clip, vision_layers=3, text_layers=1, vocab_size=520, skip_layers=(0, 1)
    ),
    blocks=2,
)


@pytest.fixture
def net() -> EscNet:
    return build_model(TINY)


def clip_state(config: EscNetConfig = TINY, seed: int = 5) -> State:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state: State = build_clip(config).state_dict()
    return state


def sam_state(seed: int = 6) -> State:
    """A SAM of tiny's sizes at SAM's own grid, as a file of Meta's has it."""
    sam = TINY.sam
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = PromptEncoder(sam.embed_dim, (64, 64), (1024, 1024), sam.mask_channels)
        transformer = TwoWayTransformer(sam.depth, sam.embed_dim, sam.heads, sam.mlp_dim)
        decoder = MaskDecoder(transformer_dim=sam.embed_dim, transformer=transformer)
    parts: dict[str, nn.Module] = {"prompt_encoder": encoder, "mask_decoder": decoder}
    state = {f"{p}.{k}": v for p, part in parts.items() for k, v in part.state_dict().items()}
    return {**state, "image_encoder.pos_embed": torch.zeros(1, 2, 2, 4)}


def write(state: State, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


def load_clip_from(net: EscNet, path: Path) -> None:
    load_clip(net, str(path))


def load_checkpoint_from(net: EscNet, path: Path) -> None:
    load_checkpoint(path)


def unchanged(net: EscNet) -> bool:
    fresh = build_model(TINY).state_dict()
    return all(torch.equal(value, fresh[name]) for name, value in net.state_dict().items())


# --- CLIP ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth", "w.bin"])
def test_a_clip_file_is_loaded_and_gives_its_embeddings(
    name: str, net: EscNet, tmp_path: Path
) -> None:
    state = clip_state()
    load_clip(net, str(write(state, tmp_path / name)))
    assert all(torch.equal(value, state[key]) for key, value in net.clip.state_dict().items())
    clip = build_clip(TINY).eval()
    clip.load_state_dict(state)
    ids = tokens(TINY, (2, 5))
    with torch.no_grad():
        expected = clip.encode_text(ids.long(), normalize=True)
        assert relative_l2(net.encode_text(ids), expected) < 1e-5
    rest = {k: v for k, v in net.state_dict().items() if not k.startswith("clip.")}
    fresh = build_model(TINY).state_dict()
    assert all(torch.equal(value, fresh[key]) for key, value in rest.items())


def test_gradients_and_devices_stay_as_they_were(net: EscNet, tmp_path: Path) -> None:
    net.clip.text_projection.requires_grad_(False)
    before = dict(net.named_parameters())
    load_clip(net, str(write(clip_state(), tmp_path / "w.pt")))
    assert dict(net.named_parameters()) == before  # the same objects
    assert not net.clip.text_projection.requires_grad
    assert net.clip.visual.proj.requires_grad
    assert net.clip.visual.proj.is_leaf


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_number_formats_become_the_models(
    kind: torch.dtype, net: EscNet, tmp_path: Path
) -> None:
    state = {name: value.to(kind) for name, value in clip_state().items()}
    load_clip(net, str(write(state, tmp_path / "w.safetensors")))
    assert net.clip.visual.proj.dtype == torch.float32
    assert torch.equal(net.clip.visual.proj, state["visual.proj"].float())


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "state_dict_ema"])
def test_wrapped_and_prefixed_states_are_understood(key: str, net: EscNet, tmp_path: Path) -> None:
    state = clip_state()
    training = {
        "epoch": 3,
        "name": "run",
        key: {f"module.{name}": value for name, value in state.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
    }
    path = tmp_path / "epoch_3.pt"
    torch.save(training, path)
    load_clip(net, str(path))
    assert torch.equal(net.clip.visual.proj, state["visual.proj"])


def test_a_prefix_of_distributed_training_is_taken_away_in_safetensors_too(
    net: EscNet, tmp_path: Path
) -> None:
    state = {f"module.{name}": value for name, value in clip_state().items()}
    load_clip(net, str(write(state, tmp_path / "w.safetensors")))
    assert torch.equal(net.clip.visual.proj, state["module.visual.proj"])


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_what_compiling_puts_into_names_is_taken_away(
    prefix: str, net: EscNet, tmp_path: Path
) -> None:
    state = {f"{prefix}{name}": value for name, value in clip_state().items()}
    load_clip(net, str(write(state, tmp_path / "w.safetensors")))
    assert torch.equal(net.clip.visual.proj, state[f"{prefix}visual.proj"])
    state = {
        name.replace("visual.", "visual._orig_mod."): v for name, v in clip_state(seed=8).items()
    }
    load_clip(net, str(write(state, tmp_path / "w.ckpt")))
    assert torch.equal(net.clip.visual.proj, state["visual._orig_mod.proj"])


def test_an_averaged_model_is_understood(net: EscNet, tmp_path: Path) -> None:
    averaged = AveragedModel(build_clip(TINY))
    averaged.update_parameters(build_clip(TINY))
    state = averaged.state_dict()
    assert {name.partition(".")[0] for name in state} == {"module", "n_averaged"}
    load_clip(net, str(write(state, tmp_path / "ema.pt")))
    assert torch.equal(net.clip.visual.proj, state["module.visual.proj"])


def test_a_scale_of_one_dimension_is_the_scale(net: EscNet, tmp_path: Path) -> None:
    state = clip_state() | {"logit_scale": torch.tensor([3.5])}
    load_clip(net, str(write(state, tmp_path / "w.pt")))
    assert torch.equal(net.clip.logit_scale, torch.tensor(3.5))


def test_the_sizes_among_openais_tensors_are_ignored(net: EscNet, tmp_path: Path) -> None:
    sizes = {"input_resolution": 128, "context_length": 77, "vocab_size": 520}
    state = clip_state() | {name: torch.tensor(value) for name, value in sizes.items()}
    state["attn_mask"] = torch.full((77, 77), -torch.inf).triu(1)
    load_clip(net, str(write(state, tmp_path / "w.pt")))
    assert torch.equal(net.clip.visual.proj, state["visual.proj"])


@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_positions_of_another_image_size_are_resized_as_open_clip_does(
    kind: torch.dtype, net: EscNet, tmp_path: Path
) -> None:
    smaller = dataclasses.replace(TINY.clip, image_size=64)
    state = clip_state(dataclasses.replace(TINY, clip=smaller))
    state = {name: value.to(kind) for name, value in state.items()}
    load_clip(net, str(write(state, tmp_path / "w.safetensors")))
    theirs = {name: value.float() for name, value in state.items()}
    resize_pos_embed(theirs, build_clip(TINY))
    expected = theirs["visual.positional_embedding"]
    assert expected.shape == (257, 128)
    assert torch.equal(net.clip.visual.positional_embedding, expected)


def misfit(change: Callable[[State], object], state: State) -> State:
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("visual.proj"), r"missing visual\.proj, expected float32 \[128, 128\]"),
        (lambda s: s.update(logit_bias=torch.zeros(1)), r"surplus logit_bias, float32 \[1\]"),
        (
            lambda s: s.update({"visual.proj": torch.zeros(128, 64)}),
            r"visual\.proj is float32 \[128, 64\], expected float32 \[128, 128\]",
        ),
        (
            lambda s: s.update({"visual.proj": torch.zeros(128, 128, dtype=torch.int8)}),
            r"visual\.proj is int8 \[128, 128\], expected floating-point",
        ),
        (
            lambda s: s.update({"visual.proj": torch.zeros(128, 128, dtype=torch.complex64)}),
            r"visual\.proj is complex64",
        ),
        (
            lambda s: s.update({"visual.proj": torch.full((128, 128), torch.nan)}),
            r"visual\.proj holds 16384 values that are NaN or infinite in float32",
        ),
        (
            lambda s: s.update(logit_scale=torch.tensor(1e300, dtype=torch.float64)),
            r"logit_scale holds 1 values that are NaN or infinite in float32",
        ),
        (
            lambda s: s.update({"visual.positional_embedding": torch.zeros(66, 128)}),
            r"visual\.positional_embedding is float32 \[66, 128\], expected float32 \[257, 128\]",
        ),
        (
            lambda s: s.update({"visual.positional_embedding": torch.zeros(65, 64)}),
            r"visual\.positional_embedding is float32 \[65, 64\]",
        ),
        (
            lambda s: s.update(positional_embedding=torch.zeros(32, 128)),
            r"model: positional_embedding is float32 \[32, 128\], expected float32 \[77, 128\]",
        ),
    ],
)
@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_a_clip_that_does_not_fit_is_named_and_nothing_is_loaded(
    name: str, change: Callable[[State], object], message: str, net: EscNet, tmp_path: Path
) -> None:
    path = write(misfit(change, clip_state()), tmp_path / name)
    with pytest.raises(WeightsError, match=message) as caught:
        load_clip(net, str(path))
    assert str(path) in str(caught.value)
    assert unchanged(net)


def test_ten_misfits_are_listed_and_the_rest_is_counted(net: EscNet, tmp_path: Path) -> None:
    path = write({f"layer{index}": torch.zeros(1) for index in range(25)}, tmp_path / "w.pt")
    missing = len(net.clip.state_dict())
    with pytest.raises(WeightsError, match=f"; and {missing + 25 - 10} more") as caught:
        load_clip(net, str(path))
    assert str(caught.value).count("missing ") == 5
    assert str(caught.value).count("surplus ") == 5


def of_hugging_face() -> State:
    state = clip_state()
    return {
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "logit_scale": state["logit_scale"],
    }


def of_detectron2() -> State:
    clip = {f"sem_seg_head.predictor.clip_model.{k}": v for k, v in clip_state().items()}
    return {**clip, "backbone.patch_embed.proj.bias": torch.zeros(2)}


def of_a_custom_text_clip() -> State:
    return {"visual.trunk.pos_embed": torch.zeros(1), "text.ln_final.weight": torch.zeros(1)}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (of_hugging_face, r"looks like Hugging Face's CLIPModel.*surplus text_model\.embeddings"),
        (sam_state, "looks like a SAM: missing .*surplus prompt_encoder"),
        (lambda: {f"model.{k}": v for k, v in clip_state().items()}, "has 'model.' in front of"),
        (of_detectron2, "looks like a segmenter of Detectron2.*surplus sem_seg_head"),
        (of_a_custom_text_clip, "looks like open_clip's CustomTextCLIP.*surplus visual.trunk"),
        (lambda: {f"clip_model.{k}": v for k, v in clip_state().items()}, "has 'clip_model.' in f"),
    ],
)
def test_a_known_layout_of_something_else_is_named(
    state: Callable[[], State], message: str, net: EscNet, tmp_path: Path
) -> None:
    advice = (
        r"\. Expected a CLIP of the sizes of 'tiny', in the layout of OpenAI.*docs/training\.md\.$"
    )
    with pytest.raises(WeightsError, match=f"does not fit the model, it {message}.*{advice}"):
        load_clip(net, str(write(state(), tmp_path / "w.pt")))
    assert unchanged(net)


def in_hugging_faces_names(state: State) -> State:
    """The tensors of a ``CLIPModel``, in which query, key and value are apart."""
    result: State = {"logit_scale": state["logit_scale"]}
    for tower, ours, prefix in (("text", "", ""), ("vision", "visual.", "visual.")):
        for index in range(3 if tower == "vision" else 1):
            block = f"{ours}transformer.resblocks.{index}."
            layer = f"{tower}_model.encoder.layers.{index}."
            for kind in ("weight", "bias"):
                for part, rows in zip(
                    "qkv", state[f"{block}attn.in_proj_{kind}"].chunk(3), strict=True
                ):
                    result[f"{layer}self_attn.{part}_proj.{kind}"] = rows
                for theirs, name in (
                    ("self_attn.out_proj", "attn.out_proj"),
                    ("layer_norm1", "ln_1"),
                    ("layer_norm2", "ln_2"),
                    ("mlp.fc1", "mlp.c_fc"),
                    ("mlp.fc2", "mlp.c_proj"),
                ):
                    result[f"{layer}{theirs}.{kind}"] = state[f"{block}{name}.{kind}"]
        embeddings = f"{tower}_model.embeddings."
        positions = state[f"{prefix}positional_embedding"]
        result[f"{embeddings}position_embedding.weight"] = positions
        result[f"{embeddings}position_ids"] = torch.arange(len(positions))[None]
    for kind in ("weight", "bias"):
        result[f"text_model.final_layer_norm.{kind}"] = state[f"ln_final.{kind}"]
        result[f"vision_model.pre_layrnorm.{kind}"] = state[f"visual.ln_pre.{kind}"]
        result[f"vision_model.post_layernorm.{kind}"] = state[f"visual.ln_post.{kind}"]
    return result | {
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "text_projection.weight": state["text_projection"].T,
        "visual_projection.weight": state["visual.proj"].T,
    }


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_hugging_faces_clip_model_is_the_same_clip(name: str, net: EscNet, tmp_path: Path) -> None:
    state = clip_state()
    load_clip(net, str(write(in_hugging_faces_names(state), tmp_path / name)))
    assert all(torch.equal(value, state[key]) for key, value in net.clip.state_dict().items())


@pytest.mark.parametrize("layer", ["q", "k", "v"])
def test_hugging_faces_clip_model_without_a_tensor_is_refused(
    layer: str, net: EscNet, tmp_path: Path
) -> None:
    state = in_hugging_faces_names(clip_state())
    del state[f"vision_model.encoder.layers.2.self_attn.{layer}_proj.bias"]
    message = (
        r"missing visual\.transformer\.resblocks\.2\.attn\.in_proj_bias.*; surplus vision_model"
    )
    with pytest.raises(WeightsError, match=message):
        load_clip(net, str(write(state, tmp_path / "w.safetensors")))
    assert unchanged(net)


def quick(config: EscNetConfig) -> EscNet:
    return build_model(
        dataclasses.replace(config, clip=dataclasses.replace(config.clip, quick_gelu=True))
    )


_OPEN_CLIP = {"model_cfg": {"embed_dim": 128}, "preprocess_cfg": {"mean": [0.5] * 3}}
_QUICK = {"model_cfg": {"quick_gelu": True}}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "open_clip_config.json",
            _QUICK,
            "trained with quick_gelu True, the configuration has False",
        ),
        (
            "open_clip_config.json",
            _OPEN_CLIP,
            r"the image mean \(0\.5, 0\.5, 0\.5\), the configura",
        ),
        ("config.json", {"vision_config": {}}, "trained with quick_gelu True"),
        ("config.json", {"vision_config": {"hidden_act": "quick_gelu"}}, "quick_gelu True, the"),
        ("config.json", {"vision_config": {"hidden_act": "gelu"}}, None),
        ("open_clip_config.json", {"model_cfg": {}}, None),
        ("open_clip_config.json", {"model_cfg": {}, "preprocess_cfg": {"mean": 7}}, None),
        ("config.json", {"architecture": "vit_base_patch16_clip_224"}, None),
        ("config.json", [1], None),
    ],
)
def test_what_lies_beside_a_file_and_says_another_activation_refuses_it(
    file: str, content: object, message: str | None, net: EscNet, tmp_path: Path
) -> None:
    path = write(clip_state(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / file).write_text(json.dumps(content), encoding="utf-8")
    if message is None:
        load_clip(net, str(path))
        assert torch.equal(net.clip.visual.proj, clip_state()["visual.proj"])
        return
    with pytest.raises(WeightsError, match=f"{message}.*, says .*{file}"):
        load_clip(net, str(path))
    assert unchanged(net)


def test_open_clips_description_goes_before_hugging_faces(tmp_path: Path) -> None:
    path = write(clip_state(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "config.json").write_text('{"vision_config": {"hidden_act": "gelu"}}')
    net = quick(TINY)
    with pytest.raises(WeightsError, match=r"trained with quick_gelu False.* says .*config\.json"):
        load_clip(net, str(path))
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"quick_gelu": true}}')
    load_clip(net, str(path))
    assert torch.equal(net.clip.visual.proj, clip_state()["visual.proj"])


def test_a_clip_in_which_one_tensor_is_missing_is_not_called_something_else(
    net: EscNet, tmp_path: Path
) -> None:
    state = clip_state()
    del state["logit_scale"]
    with pytest.raises(WeightsError, match="does not fit the model: missing logit_scale"):
        load_clip(net, str(write(state, tmp_path / "w.pt")))


def test_a_clip_of_other_sizes_is_not_called_something_else(tmp_path: Path) -> None:
    net = build_model(
        dataclasses.replace(TINY, clip=dataclasses.replace(TINY.clip, vision_layers=6))
    )
    message = "does not fit the model: missing visual.transformer.resblocks.3.ln_1.weight"
    with pytest.raises(WeightsError, match=message):
        load_clip(net, str(write(clip_state(), tmp_path / "w.pt")))


@pytest.mark.parametrize("name", ["text_projection", "visual.positional_embedding"])
def test_tensors_without_numbers_are_refused(name: str, net: EscNet, tmp_path: Path) -> None:
    state = clip_state()
    state[name] = state[name].to("meta")
    message = f"{name} is on the meta device, it has a shape and no numbers"
    with pytest.raises(WeightsError, match=message):
        load_clip(net, str(write(state, tmp_path / "w.pt")))
    assert unchanged(net)


# --- open_clip's tags ----------------------------------------------------------------------------


def b16(quick_gelu: bool = True) -> EscNet:
    """A model of ViT-B/16's sizes without storage."""
    config = preset("vit-b-16")
    clip = dataclasses.replace(config.clip, quick_gelu=quick_gelu)
    with torch.device("meta"):
        return build_model(dataclasses.replace(config, clip=clip))


@pytest.fixture
def download(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stands in for open_clip's downloader: keeps what is asked for and fails."""
    asked: list[dict[str, Any]] = []

    def fail(entry: dict[str, Any], **_: object) -> str:
        asked.append(entry)
        raise FileNotFoundError("no network here")

    monkeypatch.setattr(pretrained, "download_pretrained", fail)
    return asked


@pytest.mark.parametrize(
    ("quick_gelu", "tag", "name", "key"),
    [
        (True, "openai", "ViT-B-16-quickgelu", "openai"),
        (True, "OpenAI", "ViT-B-16-quickgelu", "openai"),
        (False, "laion2b_s34b_b88k", "ViT-B-16", "laion2b_s34b_b88k"),
        (False, "laion2b-s34b-b88k", "ViT-B-16", "laion2b_s34b_b88k"),
    ],
)
def test_a_tag_asks_open_clip_for_its_file(
    quick_gelu: bool, tag: str, name: str, key: str, download: list[dict[str, Any]]
) -> None:
    with pytest.raises(WeightsError, match=r"could not be downloaded: no network here"):
        load_clip(b16(quick_gelu), tag)
    assert download == [pretrained.get_pretrained_cfg(name, key)]


def test_vit_l_takes_the_tag_of_its_image_size_first(download: list[dict[str, Any]]) -> None:
    with torch.device("meta"):
        net = build_model(preset("vit-l-14-336"))
    for tag in ("openai", "metaclip_400m"):
        with pytest.raises(WeightsError, match="could not be downloaded"):
            load_clip(net, tag)
    assert download == [
        pretrained.get_pretrained_cfg("ViT-L-14-336", "openai"),
        pretrained.get_pretrained_cfg("ViT-L-14", "metaclip_400m"),
    ]


def test_what_is_downloaded_is_loaded_as_a_file(
    net: EscNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = clip_state()
    path = write(state, tmp_path / "open_clip_model.safetensors")
    sizes = {
        "embed_dim": 128,
        "vision_cfg": {"layers": 3, "width": 128, "patch_size": 8, "head_width": 32},
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 520,
            "width": 128,
            "heads": 4,
            "layers": 1,
        },
    }
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: sizes)
    monkeypatch.setattr(pretrained, "download_pretrained", lambda entry: str(path))
    load_clip(net, "laion2b_s34b_b88k")
    assert torch.equal(net.clip.visual.proj, state["visual.proj"])


@pytest.mark.parametrize(
    ("quick_gelu", "tag", "message"),
    [
        (True, "openia", r"neither a file .* nor one of open_clip's tags for ViT-B-16.*openai"),
        (True, "laion2b_s34b_b88k", "trained with quick_gelu False, the configuration has True"),
        (False, "openai", "trained with quick_gelu True, the configuration has False"),
        (True, "", "neither a file"),
    ],
)
def test_a_tag_that_does_not_fit_is_refused(
    quick_gelu: bool, tag: str, message: str, download: list[dict[str, Any]]
) -> None:
    with pytest.raises(WeightsError, match=message):
        load_clip(b16(quick_gelu), tag)
    assert download == []


def test_tags_trained_with_other_colours_are_refused(download: list[dict[str, Any]]) -> None:
    config = preset("vit-l-14-336")
    clip = dataclasses.replace(config.clip, quick_gelu=False)
    with torch.device("meta"):
        net = build_model(dataclasses.replace(config, clip=clip))
    with pytest.raises(WeightsError, match=r"image mean \(0\.5, 0\.5, 0\.5\), the configuration"):
        load_clip(net, "laion2b_s32b_b82k")
    assert download == []


def test_a_preset_open_clip_does_not_know_has_no_tags(
    net: EscNet, download: list[dict[str, Any]]
) -> None:
    with pytest.raises(WeightsError, match="no CLIP with the sizes of the configuration 'tiny'"):
        load_clip(net, "openai")
    assert download == []


# --- SAM -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sam_vit_b.pth", "mobile_sam.pt", "sam.safetensors"])
def test_sam_is_loaded_into_every_block(name: str, net: EscNet, tmp_path: Path) -> None:
    state = sam_state()
    load_sam(net, write(state, tmp_path / name))
    for block in net.esc_blocks:
        for key, value in block.sam.prompt_encoder.state_dict().items():
            assert torch.equal(value, state[f"prompt_encoder.{key}"])
        for key, value in block.sam.transformer.state_dict().items():
            assert torch.equal(value, state[f"mask_decoder.transformer.{key}"])
    first, second = (block.sam.transformer.norm_final_attn.weight for block in net.esc_blocks[:2])
    assert first.data_ptr() != second.data_ptr()  # copies, to be fine-tuned apart
    rest = {key: value for key, value in net.state_dict().items() if ".sam." not in key}
    fresh = build_model(TINY).state_dict()
    assert all(torch.equal(value, fresh[key]) for key, value in rest.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("prompt_encoder.no_mask_embed.weight"),
            r"missing prompt_encoder\.no_mask_embed\.weight, expected float32 \[1, 64\]",
        ),
        (
            lambda s: s.pop("mask_decoder.transformer.layers.1.norm4.bias"),
            r"missing mask_decoder\.transformer\.layers\.1\.norm4\.bias",
        ),
        (
            lambda s: s.update({"mask_decoder.hf_token.weight": torch.zeros(1, 64)}),
            r"surplus mask_decoder\.hf_token\.weight",
        ),
        (lambda s: s.update(extra=torch.zeros(2)), r"surplus extra, float32 \[2\]"),
        (
            lambda s: s.update({"prompt_encoder.not_a_point_embed.weight": torch.zeros(1, 256)}),
            r"not_a_point_embed\.weight is float32 \[1, 256\], expected float32 \[1, 64\]",
        ),
    ],
)
def test_a_sam_that_does_not_fit_is_named_and_nothing_is_loaded(
    change: Callable[[State], object], message: str, net: EscNet, tmp_path: Path
) -> None:
    path = write(misfit(change, sam_state()), tmp_path / "sam.pth")
    with pytest.raises(WeightsError, match=message):
        load_sam(net, path)
    assert unchanged(net)


def of_sam_2() -> State:
    return {f"sam_{name}": v for name, v in sam_state().items() if not name.startswith("image")}


def of_hugging_faces_sam() -> State:
    renamed = {
        "image_encoder": "vision_encoder",
        "prompt_encoder.mask_downscaling": "prompt_encoder.mask_embed",
        "point_embeddings": "point_embed",
        ".norm": ".layer_norm",
    }
    state = sam_state()
    for ours, theirs in renamed.items():
        state = {name.replace(ours, theirs): value for name, value in state.items()}
    return state


def of_sam_hq() -> State:
    return sam_state() | {"mask_decoder.hf_token.weight": torch.zeros(1, 64)}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (of_sam_2, "model, it looks like a SAM 2: missing prompt_encoder"),
        (of_hugging_faces_sam, "model, it looks like Hugging Face's SamModel, not Meta's layout: "),
        (of_sam_hq, "model: surplus mask_decoder.hf_token"),
        (
            lambda: {f"sam.{k}": v for k, v in sam_state().items()},
            "model, it has 'sam.' in front of",
        ),
    ],
)
def test_another_sam_is_refused_with_what_is_expected(
    state: Callable[[], State], message: str, net: EscNet, tmp_path: Path
) -> None:
    advice = r"\. Expected a SAM in Meta's layout, of the sizes of 'tiny' \(embed_dim 64\); Meta's"
    with pytest.raises(WeightsError, match=f"does not fit the {message}.*{advice}"):
        load_sam(net, write(state(), tmp_path / "sam.pt"))
    assert unchanged(net)


def test_who_wants_metas_sam_is_told_its_files(tmp_path: Path) -> None:
    sam = dataclasses.replace(preset("vit-b-16").sam, mlp_dim=64)
    net = build_model(dataclasses.replace(TINY, sam=sam, blocks=1))
    message = r"\(embed_dim 256\): sam_vit_b_01ec64\.pth, mobile_sam\.pt .* SAM 2 have decoders of"
    with pytest.raises(WeightsError, match=message):
        load_sam(net, write(of_sam_2(), tmp_path / "sam2_hiera_base_plus.pt"))


def test_clips_file_is_no_sam_and_the_other_way_round(net: EscNet, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="missing prompt_encoder"):
        load_sam(net, write(clip_state(), tmp_path / "clip.pt"))
    with pytest.raises(WeightsError, match="does not fit the model, it looks like a CLIP: "):
        load_sam(net, tmp_path / "clip.pt")
    with pytest.raises(WeightsError, match="missing positional_embedding"):
        load_clip(net, str(write(sam_state(), tmp_path / "sam.pt")))
    assert unchanged(net)


# --- checkpoints ---------------------------------------------------------------------------------


def test_a_checkpoint_gives_the_same_model_back(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, templates=("ein {} · 猫", "a {}"), name="mine")
    net = build_model(config, seed=7)
    path = tmp_path / "new" / "mine.safetensors"
    save_checkpoint(net, path, trained=True, weights="trained on “shapes”, seed 7")
    loaded = load_checkpoint(path)
    assert loaded.trained is True
    assert loaded.weights == "trained on “shapes”, seed 7"
    assert loaded.model.config == config
    assert not loaded.model.training
    state = loaded.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    with torch.no_grad():
        inputs = image(config), text(config, 2)
        assert torch.equal(loaded.model(*inputs), net(*inputs))
    assert [entry.name for entry in path.parent.iterdir()] == ["mine.safetensors"]


def test_loading_leaves_the_random_state_alone(net: EscNet, tmp_path: Path) -> None:
    save_checkpoint(net, tmp_path / "c.safetensors", trained=False, weights="random")
    before = torch.get_rng_state()
    load_checkpoint(tmp_path / "c.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_saved_as_such_and_loaded_as_float32(
    kind: torch.dtype, net: EscNet, tmp_path: Path
) -> None:
    half = copy.deepcopy(net).to(kind)
    path = tmp_path / "c.safetensors"
    save_checkpoint(half, path, trained=False, weights="random")
    with safetensors.safe_open(path, "pt") as file:
        assert file.get_tensor("clip.visual.proj").dtype == kind
    got = load_checkpoint(path).model.clip.visual.proj
    assert got.dtype == torch.float32
    assert torch.equal(got, half.clip.visual.proj.float())


def test_a_checkpoint_is_replaced_whole_or_not_at_all(
    net: EscNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(net, path, trained=False, weights="first")
    content = path.read_bytes()

    def full(name: Path, content: bytes) -> int:
        with name.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(net, path, trained=False, weights="second")
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_save_leaves_is_removed_by_the_next(tmp_path: Path) -> None:
    path, tensors = tmp_path / "c.safetensors", {"a": torch.arange(100_000)}
    child = os.fork()
    if child == 0:
        # Ended by the system in the middle of the file.
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        write_tensors(tensors, path, {})
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGXFSZ
    assert not path.exists()
    assert len(list(tmp_path.iterdir())) >= 1
    write_tensors(tensors, path, {"step": "1"})
    assert list(tmp_path.iterdir()) == [path]
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"step": "1"}
        assert torch.equal(file.get_tensor("a"), tensors["a"])


def test_others_may_read_a_checkpoint_as_the_umask_allows(net: EscNet, tmp_path: Path) -> None:
    path, plain = tmp_path / "c.safetensors", tmp_path / "plain"
    before = os.umask(0o027)
    try:
        save_checkpoint(net, path, trained=False, weights="random")
        plain.touch()
    finally:
        os.umask(before)
    assert path.stat().st_mode == plain.stat().st_mode


def test_a_diverged_model_is_not_saved(net: EscNet, tmp_path: Path) -> None:
    with torch.no_grad():
        net.clip.visual.proj[0, 0] = torch.inf
    path = tmp_path / "c.safetensors"
    with pytest.raises(WeightsError, match=r"clip\.visual\.proj holds 1 values that are NaN"):
        save_checkpoint(net, path, trained=True, weights="diverged")
    assert not path.exists()


def test_a_checkpoint_needs_its_suffix_and_a_place(net: EscNet, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"ends in \.safetensors, got 'c\.pt'"):
        save_checkpoint(net, tmp_path / "c.pt", trained=False, weights="random")
    (tmp_path / "c.safetensors").mkdir()
    with pytest.raises(InputError, match="it is a folder"):
        save_checkpoint(net, tmp_path / "c.safetensors", trained=False, weights="random")


def with_changes(
    path: Path,
    *,
    header: Callable[[dict[str, Any]], object] = lambda h: None,
    state: Callable[[State], object] = lambda s: None,
) -> Path:
    """A checkpoint of tiny whose description or tensors were changed."""
    save_checkpoint(build_model(TINY), path, trained=False, weights="random")
    with safetensors.safe_open(path, "pt") as file:
        description = json.loads(file.metadata()["escnet"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header(description)
    state(tensors)
    save_file(tensors, path, metadata={"escnet": json.dumps(description)})
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(format=2), "checkpoint format 2, this version of escnet reads 1"),
        (lambda h: h.update(format=0), "format 0, expected"),
        (lambda h: h.update(format="1"), "format '1', expected"),
        (lambda h: h.pop("trained"), "expected .*'trained': 'bool'"),
        (lambda h: h.update(trained=1), "expected .*'trained': 'bool'"),
        (lambda h: h.update(weights=None), "expected .*'weights': 'str'"),
        (lambda h: h.update(author="me"), "with .*'author': 'str'.*, expected"),
        (lambda h: h["configuration"].pop("sam"), "missing sam"),
        (lambda h: h["configuration"]["clip"].update(image_size=100), "100 is not a multiple"),
        (
            lambda h: h["configuration"].update(blocks=4),
            r"missing blocks\.2\.sam.*; and \d+ more",
        ),
        (
            lambda h: h["configuration"].update(blocks=1),
            r"surplus blocks\.1\..*; and \d+ more",
        ),
        (
            lambda h: h["configuration"]["fusion"].update(mlp_ratio=2),
            r"mlp\.up\.weight is float32 \[128, 32\], expected float32 \[64, 32\]",
        ),
    ],
)
def test_a_description_that_does_not_fit_is_refused(
    change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    path = with_changes(tmp_path / "c.safetensors", header=change)
    with pytest.raises(WeightsError, match=message):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("decoder.head.bias"), r"missing decoder\.head\.bias"),
        (lambda s: s.update(more=torch.zeros(1)), "surplus more"),
        (lambda s: s["decoder.head.bias"].fill_(torch.nan), r"decoder\.head\.bias holds 1 values"),
        (
            lambda s: s.update({"decoder.head.bias": torch.zeros(1, dtype=torch.int64)}),
            r"decoder\.head\.bias is int64 \[1\]",
        ),
    ],
)
def test_checkpoint_tensors_that_do_not_fit_are_refused(
    change: Callable[[State], object], message: str, tmp_path: Path
) -> None:
    path = with_changes(tmp_path / "c.safetensors", state=change)
    with pytest.raises(WeightsError, match=message):
        load_checkpoint(path)


def test_safetensors_of_others_are_no_checkpoints(tmp_path: Path) -> None:
    path = write(clip_state(), tmp_path / "clip.safetensors")
    with pytest.raises(WeightsError, match="no checkpoint of this project"):
        load_checkpoint(path)
    save_file({"a": torch.zeros(1)}, path, metadata={"escnet": "{"})
    with pytest.raises(WeightsError, match="is not valid JSON"):
        load_checkpoint(path)


# --- files that are no weights -------------------------------------------------------------------

LOADERS = {"clip": load_clip_from, "sam": load_sam, "checkpoint": load_checkpoint_from}
each = pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)


@each
def test_missing_files_and_folders(
    load: Callable[[EscNet, Path], None], net: EscNet, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=r"none\.safetensors does not exist"):
        load(net, tmp_path / "none.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(WeightsError, match=r"folder\.safetensors is a folder"):
        load(net, tmp_path / "folder.safetensors")


@each
@pytest.mark.parametrize("keep", [0, 5, 0.5, -1])
def test_truncated_safetensors(
    load: Callable[[EscNet, Path], None], keep: float, net: EscNet, tmp_path: Path
) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(net, path, trained=False, weights="random")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if keep == 0.5 else int(keep)])
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        load(net, path)
    assert unchanged(net)


@pytest.mark.parametrize("keep", [0, 5, 0.5, -1])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_pickles(keep: float, zipped: bool, net: EscNet, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(clip_state(), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if keep == 0.5 else int(keep)])
    with pytest.raises(WeightsError, match=r"w\.pt (is refused|cannot be read)") as caught:
        load_clip(net, str(path))
    assert "weights_only" not in str(caught.value)  # torch advises to switch safety off
    assert unchanged(net)


class Malicious:
    """Unpickled without care, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def save_plain_pickle(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("save", [torch.save, save_plain_pickle])
def test_a_malicious_pickle_is_refused_and_does_not_run(
    save: Callable[[object, Path], None], net: EscNet, tmp_path: Path
) -> None:
    trace, path = tmp_path / "trace", tmp_path / "w.pt"
    content = {"visual.proj": torch.zeros(2), "payload": Malicious(trace)}
    save(content, path)
    with pytest.raises(WeightsError, match="is refused: it holds more than plain tensors"):
        load_clip(net, str(path))
    with pytest.raises(WeightsError, match="A pickle can run any program"):
        load_sam(net, path)
    assert not trace.exists()
    assert unchanged(net)
    torch.save(content, path)
    torch.load(path, weights_only=False)  # the payload works where pickles do run
    assert trace.exists()


def test_a_pickle_with_other_objects_says_which_class_and_gives_no_advice(
    net: EscNet, tmp_path: Path
) -> None:
    path = tmp_path / "w.pt"
    torch.save({"state_dict": clip_state(), "args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(WeightsError) as caught:
        load_clip(net, str(path))
    message = str(caught.value)
    assert "it asks for argparse.Namespace" in message
    for unsafe in ("two options", "still be loaded", "safe_globals", "weights_only", "\x1b"):
        assert unsafe not in message


def test_a_pickle_called_safetensors_is_not_unpickled(net: EscNet, tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "w.safetensors"
    torch.save(Malicious(trace), path)
    for load in LOADERS.values():
        with pytest.raises(WeightsError, match="cannot be read as safetensors"):
            load(net, path)
    assert not trace.exists()


def test_torchscript_is_refused_with_the_way_to_convert_it(net: EscNet, tmp_path: Path) -> None:
    path = tmp_path / "ViT-B-16.pt"
    with zipfile.ZipFile(path, "w") as archive:  # what tells TorchScript from torch.save
        archive.writestr("ViT-B-16/data.pkl", b"")
        archive.writestr("ViT-B-16/constants.pkl", b"")
    with pytest.raises(WeightsError, match="TorchScript") as caught:
        load_clip(net, str(path))
    assert f"torch.jit.load({str(path)!r}, map_location='cpu')" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "holds a Tensor, expected a dictionary"),
        ([torch.zeros(3)], "holds a list"),
        ({}, "holds an empty dictionary"),
        ({"state_dict": None}, "holds a NoneType"),
        ({"epoch": 3, "visual.proj": torch.zeros(1)}, "'epoch' is int"),
        ({0: torch.zeros(1)}, "0 is Tensor"),
        ({f"n{i}": i for i in range(12)}, "; and 2 more"),
    ],
)
def test_pickles_of_something_else(
    content: object, message: str, net: EscNet, tmp_path: Path
) -> None:
    path = tmp_path / "w.pth"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=message):
        load_sam(net, path)


def test_tensors_under_another_key_are_refused_with_the_keys_that_are_known(
    net: EscNet, tmp_path: Path
) -> None:
    torch.save({"epoch": 3, "weights": clip_state()}, tmp_path / "w.pt")
    message = "'weights' is OrderedDict. Expected them alone, or under one of the keys state_dict, "
    with pytest.raises(WeightsError, match=message):
        load_clip(net, str(tmp_path / "w.pt"))


_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@each
@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty; download it anew"),
        (_POINTER, "it is a pointer of Git LFS.*`git lfs pull`"),
        (b"\n<!DOCTYPE html>\n<html>", "it is text and begins with '<!DOCTYPE html> <html>', as a"),
        (b'{"error":"Entry not found"}', 'it is text and begins with .{"error":"Entry not found"}'),
        (b"<h1>Zugang verweigert: " + b"\xc3\xbc" * 600, "it is text and begins with '<h1>Zugang"),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00", "it is packed by gzip; unpack it first"),
    ],
)
def test_what_a_failed_download_leaves_is_told(
    content: bytes,
    message: str,
    name: str,
    load: Callable[[EscNet, Path], None],
    net: EscNet,
    tmp_path: Path,
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"w.* cannot be read as .*: {message}") as caught:
        load(net, path)
    assert len(str(caught.value).removeprefix(str(path))) < 400


def test_a_suffix_that_is_not_the_files_own_is_told(net: EscNet, tmp_path: Path) -> None:
    write(clip_state(), tmp_path / "a.safetensors").rename(tmp_path / "a.bin")
    write(clip_state(), tmp_path / "b.pt").rename(tmp_path / "b.safetensors")
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as archive:
        archive.writestr("weights/clip.safetensors", b"")
    for name, message in (
        ("a.bin", "it is a file of safetensors; rename it"),
        ("b.safetensors", r"it is a file of PyTorch, whose suffixes are \.pt"),
        ("c.pt", "a ZIP archive, not PyTorch's, of 'weights/clip.safetensors'; unpack it first"),
    ):
        with pytest.raises(WeightsError, match=message):
            load_clip(net, str(tmp_path / name))
    with pytest.raises(
        WeightsError, match=r"it is a file of PyTorch.* A checkpoint is a \.safeten"
    ):
        load_checkpoint(write(clip_state(), tmp_path / "state.pt"))


def test_the_kind_of_what_cannot_be_opened_is_not_known(tmp_path: Path) -> None:
    assert kind_of_file(tmp_path) is None


def test_sparse_tensors_are_refused(net: EscNet, tmp_path: Path) -> None:
    state = clip_state()
    state["visual.proj"] = state["visual.proj"].to_sparse()
    with pytest.raises(WeightsError, match=r"visual\.proj is sparse_coo float32 \[128, 128\]"):
        load_clip(net, str(write(state, tmp_path / "w.pt")))
    assert unchanged(net)


def test_other_suffixes_are_refused(net: EscNet, tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    path.write_bytes(b"")
    with pytest.raises(WeightsError, match=r"suffix '\.npz', expected \.safetensors, \.pt"):
        load_clip(net, str(path))
    path = write(clip_state(), tmp_path / "best.pt").rename(tmp_path / "best.pth.tar")
    with pytest.raises(WeightsError, match=r"suffix '\.tar', .*; it is a file of PyTorch, whose"):
        load_clip(net, str(path))
