"""An ESC-Net that trains in seconds: tiny's shape, thinner and on a grid of 8×8."""

import dataclasses
from pathlib import Path

from escnet import EscNet, EscNetConfig, build_model, preset
from escnet.weights import save_checkpoint

__all__ = ["small_checkpoint", "small_config", "small_model"]


def small_config() -> EscNetConfig:
    """Its sizes; the image is 64 px."""
    tiny = preset("tiny")
    clip = dataclasses.replace(
        tiny.clip,
        embed_dim=32,
        image_size=64,
        vision_width=32,
        vision_layers=3,
        text_width=32,
        text_heads=2,
        text_layers=2,
        skip_layers=(0, 1),
    )
    return dataclasses.replace(tiny, name="small", clip=clip, blocks=2)


def small_model() -> EscNet:
    """With seeded random weights."""
    return build_model(small_config(), seed=5)


def small_checkpoint(path: Path) -> Path:
    """Write one; returns its path."""
    save_checkpoint(small_model(), path, trained=False, weights="seeded random (seed 5)")
    return path
