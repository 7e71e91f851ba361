"""The presets: configurations as data.

``tiny`` is small enough for a laptop's CPU. ``vit-b-16`` and ``vit-l-14-336`` have the sizes of the
paper's two models (arXiv 2411.14723); where the paper is silent, CAT-Seg's published values stand
(README, "Where the paper is silent").
"""

from dataclasses import replace
from typing import Final

from escnet_runtime.errors import InputError
from escnet_runtime.ppg import PpgConstants

from .config import ClipConfig, DecoderConfig, EscNetConfig, FusionConfig, SamConfig

__all__ = ["DEFAULT_PRESET", "PRESETS", "preset"]

DEFAULT_PRESET: Final = "tiny"

# The normalisation CLIP was trained with (OpenAI's and open_clip's).
_CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD: Final = (0.26862954, 0.26130258, 0.27577711)
# The paper is silent about the text prompt; this is CAT-Seg's single-template form.
_TEMPLATES: Final = ("A photo of a {} in the scene",)

# Sized so that checkpoint and training stay small: 11.6 MB, two hours on two cores.
_TINY = EscNetConfig(
    name="tiny",
    clip=ClipConfig(
        embed_dim=128,
        quick_gelu=False,
        image_size=128,
        patch_size=8,
        vision_width=128,
        vision_layers=6,
        vision_head_width=32,
        text_width=128,
        text_heads=4,
        text_layers=3,
        context_length=77,
        vocab_size=2048,
        skip_layers=(1, 3),
    ),
    sam=SamConfig(
        embed_dim=64,
        heads=4,
        depth=2,
        mlp_dim=128,
        mask_channels=8,
        mask_logit_scale=10.0,
        in_blocks=True,
        prompts="points+masks",
    ),
    fusion=FusionConfig(hidden_dim=32, heads=2, window=8, mlp_ratio=4),
    decoder=DecoderConfig(
        channels=(32, 16), skip_channels=(8, 8), skip_widths=(32, 16), norm_group=8
    ),
    blocks=4,
    ppg=PpgConstants(),
    templates=_TEMPLATES,
    image_mean=_CLIP_MEAN,
    image_std=_CLIP_STD,
)

# SAM ViT-B's prompt encoder and mask-decoder transformer.
_SAM = SamConfig(
    embed_dim=256,
    heads=8,
    depth=2,
    mlp_dim=2048,
    mask_channels=16,
    mask_logit_scale=10.0,
    in_blocks=True,
    prompts="points+masks",
)
_FUSION = FusionConfig(hidden_dim=128, heads=4, window=12, mlp_ratio=4)
_DECODER = DecoderConfig(
    channels=(64, 32), skip_channels=(32, 16), skip_widths=(256, 128), norm_group=16
)

# The paper is silent about image size, skip layers and the sizes of fusion and decoder: as CAT-Seg,
# 384 px for ViT-B/16 and 336 px for ViT-L/14, both 24×24 tokens.
_VIT_B_16 = EscNetConfig(
    name="vit-b-16",
    clip=ClipConfig(
        embed_dim=512,
        quick_gelu=True,
        image_size=384,
        patch_size=16,
        vision_width=768,
        vision_layers=12,
        vision_head_width=64,
        text_width=512,
        text_heads=8,
        text_layers=12,
        context_length=77,
        vocab_size=49408,
        skip_layers=(3, 7),
    ),
    sam=_SAM,
    fusion=_FUSION,
    decoder=_DECODER,
    blocks=4,
    ppg=PpgConstants(),
    templates=_TEMPLATES,
    image_mean=_CLIP_MEAN,
    image_std=_CLIP_STD,
)

_VIT_L_14_336 = replace(
    _VIT_B_16,
    name="vit-l-14-336",
    clip=replace(
        _VIT_B_16.clip,
        embed_dim=768,
        image_size=336,
        patch_size=14,
        vision_width=1024,
        vision_layers=24,
        text_width=768,
        text_heads=12,
        skip_layers=(7, 15),
    ),
)

PRESETS: Final = {config.name: config for config in (_TINY, _VIT_B_16, _VIT_L_14_336)}


def preset(name: str) -> EscNetConfig:
    """The configuration called ``name``.

    Raises:
        InputError: there is no such preset.
    """
    if name not in PRESETS:
        raise InputError(f"no preset is called {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
