"""CLIP's weights, from open_clip's registry or a file."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Final

import open_clip
import torch
from open_clip import pretrained
from open_clip.model import CLIPVisionCfg, resize_pos_embed
from torch import Tensor

from escnet.config import ClipConfig, EscNetConfig
from escnet.model import EscNet

from .files import SUFFIXES, read_tensors
from .hugging_face import in_open_clips_names, is_clip_model
from .state import WeightsError, copy_into, fitted

__all__ = ["load_clip"]

# open_clip's names without "-quickgelu", which have the same sizes and all the tags; of several
# names that fit, the first that has the tag is taken.
_NAMES: Final = ("ViT-B-16", "ViT-L-14-336", "ViT-L-14")
# OpenAI's files carry three sizes among their tensors, TorchScript of open_clip's model its mask.
_UNUSED: Final = ("input_resolution", "context_length", "vocab_size", "attn_mask")
_IMAGE_POSITIONS: Final = "visual.positional_embedding"
_SCALE: Final = "logit_scale"
#: Beside the weights in a folder of the Hugging Face hub: what no tensor shows.
_OPEN_CLIPS: Final = "open_clip_config.json"
_HUGGING_FACES: Final = "config.json"


def load_clip(model: EscNet, source: str) -> None:
    """Copy CLIP's weights, image and text tower, into ``model.clip``.

    Positional embeddings of another image size are resized bicubically, as open_clip does. A file
    does not say whether it was trained with QuickGELU: the configuration's ``quick_gelu`` has to.
    Where the hub's description of the model lies beside the file, it is compared.

    Args:
        model: changed in place, or not at all.
        source: one of open_clip's tags for the model's CLIP, such as ``openai``, which may
            download it; or a file, told from a tag by its suffix or a slash. Its tensors have the
            names of OpenAI and open_clip, or those of Hugging Face's ``CLIPModel``.

    Raises:
        WeightsError: there is no such tag or file, a download failed, or a tensor does not fit.
    """
    path = Path(source) if _is_path(source) else _downloaded(model.config, source)
    tensors = {name: value for name, value in read_tensors(path).items() if name not in _UNUSED}
    if is_clip_model(tensors):
        tensors = in_open_clips_names(tensors)
    expected = model.clip.state_dict()
    _resize_positions(tensors, model)
    if _SCALE in tensors and tensors[_SCALE].numel() == 1:  # some have it as [1]
        tensors[_SCALE] = tensors[_SCALE].reshape(())
    values = fitted(tensors, expected, str(path), _advice(model.config))
    if _is_path(source):
        _require_described(path, model.config)
    copy_into((expected[name], value) for name, value in values.items())


def _advice(config: EscNetConfig) -> str:
    return (
        f" Expected a CLIP of the sizes of {config.name!r}, in the layout of OpenAI, open_clip or "
        "Hugging Face; how to bring others to it is in docs/training.md."
    )


def _require_described(path: Path, config: EscNetConfig) -> None:
    """Compare what no tensor shows with the description that the hub has beside its weights."""
    for name, read in ((_OPEN_CLIPS, _of_open_clip), (_HUGGING_FACES, _of_hugging_face)):
        beside = path.with_name(name)
        try:
            entry = read(json.loads(beside.read_text(encoding="utf-8")))
            mismatch = _mismatch(entry, config)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue  # there is none, or it describes something else
        if mismatch is not None:
            raise WeightsError(
                f"CLIP weights {path} were trained with {mismatch}, says {beside}. Where it is of "
                "another file, keep the weights in a folder of their own."
            )
        return


def _of_open_clip(content: dict[str, Any]) -> dict[str, Any]:
    seen = content.get("preprocess_cfg", {})
    return {"quick_gelu": content["model_cfg"].get("quick_gelu", False), **seen}


def _of_hugging_face(content: dict[str, Any]) -> dict[str, Any]:
    vision = content["vision_config"]
    return {"quick_gelu": vision.get("hidden_act", "quick_gelu") == "quick_gelu"}


def _is_path(source: str) -> bool:
    return Path(source).suffix in SUFFIXES or Path(source).name != source


def _resize_positions(tensors: dict[str, Tensor], model: EscNet) -> None:
    """Bring a square grid of another size to the model's; anything else is left to be refused."""
    positions, own = tensors.get(_IMAGE_POSITIONS), model.clip.visual.positional_embedding
    if (
        positions is None
        or positions.layout != torch.strided
        or not positions.is_floating_point()
        or positions.ndim != own.ndim
        or positions.shape[1] != own.shape[1]
    ):
        return
    side = math.isqrt(max(len(positions) - 1, 0))
    if side and side**2 + 1 == len(positions):
        tensors[_IMAGE_POSITIONS] = positions.float()
        resize_pos_embed(tensors, model.clip)


def _downloaded(config: EscNetConfig, tag: str) -> Path:
    """The file of a tag, from open_clip's cache or its host."""
    entry = _registered(config, tag)
    try:
        return Path(pretrained.download_pretrained(entry))
    # RuntimeError: a wrong checksum; open_clip makes FileNotFoundErrors of its hub's errors.
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"CLIP weights {tag!r} could not be downloaded: {error}. Fetch the file elsewhere and "
            "give its path."
        ) from error


def _registered(config: EscNetConfig, tag: str) -> dict[str, Any]:
    """open_clip's entry of a tag, if it fits the configuration."""
    names = [name for name in _NAMES if _sizes_of(name) == _sizes(config.clip)]
    if not names:
        raise WeightsError(
            f"{tag!r} is not a file of weights ({', '.join(SUFFIXES)}), and open_clip has no CLIP "
            f"with the sizes of the configuration {config.name!r}; give a file."
        )
    known: dict[str, str | None] = {}
    for name in names:
        for other in open_clip.list_pretrained_tags_by_model(name):
            known.setdefault(other, _mismatch(pretrained.get_pretrained_cfg(name, other), config))
        entry: dict[str, Any] = pretrained.get_pretrained_cfg(name, tag)
        if entry:
            mismatch = _mismatch(entry, config)
            if mismatch is not None:
                raise WeightsError(f"CLIP weights {tag!r} were trained with {mismatch}.")
            return entry
    fitting = [other for other, mismatch in known.items() if mismatch is None]
    raise WeightsError(
        f"{tag!r} is neither a file of weights ({', '.join(SUFFIXES)}) nor one of open_clip's tags "
        f"for {names[0]}; of those, {', '.join(fitting) or 'none'} fit the configuration "
        f"{config.name!r}."
    )


def _mismatch(entry: dict[str, Any], config: EscNetConfig) -> str | None:
    """What no tensor shows: the activation, and the colours the image tower expects."""
    quick = bool(entry.get("quick_gelu", False))
    if quick != config.clip.quick_gelu:
        return f"quick_gelu {quick}, the configuration has {config.clip.quick_gelu}"
    for key, own in (("mean", config.image_mean), ("std", config.image_std)):
        if key in entry and tuple(entry[key]) != own:
            return f"the image {key} {tuple(entry[key])}, the configuration has {own}"
    return None


def _sizes(clip: ClipConfig) -> dict[str, int]:
    """What must agree; positional embeddings of another image size can be resized."""
    sizes = dataclasses.asdict(clip)
    return {key: sizes[key] for key in sizes.keys() - {"quick_gelu", "image_size", "skip_layers"}}


def _sizes_of(name: str) -> dict[str, int]:
    """The same of one of open_clip's models."""
    table = open_clip.get_model_config(name)
    vision, text = table["vision_cfg"], table["text_cfg"]
    return {
        "embed_dim": table["embed_dim"],
        "patch_size": vision["patch_size"],
        "vision_width": vision["width"],
        "vision_layers": vision["layers"],
        "vision_head_width": vision.get("head_width", CLIPVisionCfg.head_width),
        "text_width": text["width"],
        "text_heads": text["heads"],
        "text_layers": text["layers"],
        "context_length": text["context_length"],
        "vocab_size": text["vocab_size"],
    }
