"""From a configuration to an ESC-Net with seeded random weights: the one file that knows sizes."""

import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from segment_anything.modeling.prompt_encoder import PromptEncoder
from segment_anything.modeling.transformer import TwoWayTransformer
from torch import nn

from .block import BlockWithoutSam, EscBlock
from .config import EscNetConfig
from .decoder import Decoder, SkipProjection, UpStage
from .fusion import CategoryAttention, ImageGuidance, TextGuidance
from .model import EscNet
from .sam import SamBlock
from .swin import GuidedSwinLayer, Mlp

__all__ = ["build_clip", "build_model"]


def build_model(config: EscNetConfig, *, seed: int = 0) -> EscNet:
    """An ESC-Net in evaluation mode whose random weights depend on ``seed`` alone.

    The caller's random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed the generators of GPUs as well, and those are the caller's.
        torch.default_generator.manual_seed(seed)
        return _build(config).eval()


def build_clip(config: EscNetConfig) -> CLIP:
    """open_clip's CLIP of the configuration's sizes, with open_clip's own random weights."""
    clip = config.clip
    vision = CLIPVisionCfg(
        layers=clip.vision_layers,
        width=clip.vision_width,
        head_width=clip.vision_head_width,
        patch_size=clip.patch_size,
        image_size=clip.image_size,
    )
    text = CLIPTextCfg(
        context_length=clip.context_length,
        vocab_size=clip.vocab_size,
        width=clip.text_width,
        heads=clip.text_heads,
        layers=clip.text_layers,
    )
    return CLIP(clip.embed_dim, vision, text, quick_gelu=clip.quick_gelu)


def _build(config: EscNetConfig) -> EscNet:
    clip, decoder = config.clip, config.decoder
    grid = (config.grid, config.grid)
    widths, channels = decoder.skip_widths, decoder.skip_channels
    return EscNet(
        config,
        clip=build_clip(config),
        block_projection=nn.Conv2d(clip.embed_dim, config.sam.embed_dim, 1),
        skips=(
            _skip(clip.vision_width, widths[0], channels[0], 2, grid),
            _skip(clip.vision_width, widths[1], channels[1], 4, grid),
        ),
        correlation_embedding=nn.Conv2d(1, config.fusion.hidden_dim, 1),
        blocks=[_block(config, grid) for _ in range(config.blocks)],
        decoder=_decoder(config),
    )


def _skip(
    width: int, middle: int, channels: int, factor: int, grid: tuple[int, int]
) -> SkipProjection:
    up = nn.ConvTranspose2d(width, middle, factor, stride=factor)
    return SkipProjection(up, nn.Conv2d(middle, channels, 3, padding=1), grid)


def _block(config: EscNetConfig, grid: tuple[int, int]) -> EscBlock | BlockWithoutSam:
    sam, hidden = config.sam, config.fusion.hidden_dim
    if not sam.in_blocks:
        return BlockWithoutSam(
            guide=nn.Conv2d(sam.embed_dim, hidden, 1),
            image_guidance=_image_guidance(config, grid),
            text_guidance=_text_guidance(config),
        )
    prompt_encoder = PromptEncoder(
        embed_dim=sam.embed_dim,
        image_embedding_size=grid,
        input_image_size=grid,
        mask_in_chans=sam.mask_channels,
    )
    transformer = TwoWayTransformer(
        depth=sam.depth, embedding_dim=sam.embed_dim, num_heads=sam.heads, mlp_dim=sam.mlp_dim
    )
    return EscBlock(
        sam=SamBlock(prompt_encoder, transformer, sam.mask_logit_scale, sam.prompts),
        merge=nn.Conv2d(sam.embed_dim, sam.embed_dim, 1),
        guide=nn.Conv2d(sam.embed_dim, hidden, 1),
        image_guidance=_image_guidance(config, grid),
        text_guidance=_text_guidance(config),
    )


def _mlp(width: int, ratio: int) -> Mlp:
    return Mlp(nn.Linear(width, ratio * width), nn.Linear(ratio * width, width))


def _image_guidance(config: EscNetConfig, grid: tuple[int, int]) -> ImageGuidance:
    fusion, hidden = config.fusion, config.fusion.hidden_dim
    layers = [
        GuidedSwinLayer(
            query=nn.Linear(2 * hidden, hidden),
            key=nn.Linear(2 * hidden, hidden),
            value=nn.Linear(hidden, hidden),
            output=nn.Linear(hidden, hidden),
            mlp=_mlp(hidden, fusion.mlp_ratio),
            norm1=nn.LayerNorm(hidden),
            norm2=nn.LayerNorm(hidden),
            heads=fusion.heads,
            window=fusion.window,
            shift=shift,
            grid=grid,
        )
        for shift in (0, fusion.window // 2)
    ]
    return ImageGuidance(layers, nn.LayerNorm(hidden))


def _text_guidance(config: EscNetConfig) -> TextGuidance:
    fusion, hidden = config.fusion, config.fusion.hidden_dim
    read_out = nn.Linear(hidden, 1)
    # C' starts close to C: a cosine's scale, where the prompt threshold is tau * ln(alpha).
    nn.init.normal_(read_out.weight, std=1e-3)
    nn.init.zeros_(read_out.bias)
    if not config.sam.uses_masks:
        # Points and boxes pass no gradient to it: untrained it would only be noise, so C' is C.
        nn.init.zeros_(read_out.weight)
    return TextGuidance(
        attention=CategoryAttention(
            nn.Linear(2 * hidden, hidden),
            nn.Linear(2 * hidden, hidden),
            nn.Linear(hidden, hidden),
            fusion.heads,
        ),
        project_text=nn.Linear(config.clip.embed_dim, hidden),
        text_norm=nn.LayerNorm(hidden),
        norm1=nn.LayerNorm(hidden),
        norm2=nn.LayerNorm(hidden),
        mlp=_mlp(hidden, fusion.mlp_ratio),
        read_norm=nn.LayerNorm(hidden),
        read_out=read_out,
    )


def _decoder(config: EscNetConfig) -> Decoder:
    hidden, (first, second) = config.fusion.hidden_dim, config.decoder.channels
    skip0, skip1 = config.decoder.skip_channels
    group = config.decoder.norm_group
    return Decoder(
        _stage(hidden, skip0, first, group),
        _stage(first, skip1, second, group),
        nn.Conv2d(second, 1, 3, padding=1),
    )


def _stage(width: int, skip: int, channels: int, group: int) -> UpStage:
    raised = width - skip
    return UpStage(
        up=nn.ConvTranspose2d(width, raised, 2, stride=2),
        first=nn.Conv2d(width, channels, 3, padding=1),
        norm1=nn.GroupNorm(channels // group, channels),
        second=nn.Conv2d(channels, channels, 3, padding=1),
        norm2=nn.GroupNorm(channels // group, channels),
    )
