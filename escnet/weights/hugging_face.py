"""CLIP as Hugging Face's ``CLIPModel`` names its tensors, in open_clip's names."""

import re
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

__all__ = ["in_open_clips_names", "is_clip_model"]

#: The whole of a CLIPModel; a tower alone (CLIPTextModel, CLIPVisionModel) has no projection.
_WHOLE: Final = frozenset({"text_projection.weight", "visual_projection.weight"})
_WHOLE_NAMES: Final = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
}
#: open_clip multiplies by these from the right.
_TRANSPOSED: Final = {
    "text_projection.weight": "text_projection",
    "visual_projection.weight": "visual.proj",
}
_LAYER: Final = re.compile(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_TOWERS: Final = {"text": "transformer", "vision": "visual.transformer"}
_PARTS: Final = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_Q, _K, _V = (f"self_attn.{part}_proj" for part in "qkv")
#: Numbers of the positions, which older versions wrote among the weights.
_UNUSED: Final = "position_ids"


def is_clip_model(tensors: Mapping[str, Tensor]) -> bool:
    """Whether they are those of a whole ``CLIPModel``."""
    return tensors.keys() >= _WHOLE


def in_open_clips_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A ``CLIPModel``'s tensors as open_clip has them; a name that is not known stays."""
    result = {}
    for name, value in tensors.items():
        if name.endswith(_UNUSED):
            continue
        if name in _TRANSPOSED:
            result[_TRANSPOSED[name]] = value.T
        elif name in _WHOLE_NAMES:
            result[_WHOLE_NAMES[name]] = value
        elif layer := _LAYER.fullmatch(name):
            result |= _of_layer(name, layer, tensors)
        else:
            result[name] = value
    return result


def _of_layer(name: str, layer: re.Match[str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tower, number, part, kind = layer.groups()
    block = f"{_TOWERS[tower]}.resblocks.{number}"
    if part in _PARTS:
        return {f"{block}.{_PARTS[part]}.{kind}": tensors[name]}
    three = [name.replace(part, other) for other in (_Q, _K, _V)]
    if name not in three or not tensors.keys() >= set(three):
        return {name: tensors[name]}
    # One matrix for all three, made when q's turn comes.
    joined = f"{block}.attn.in_proj_{kind}"
    return {joined: torch.cat([tensors[one] for one in three])} if part == _Q else {}
