"""Small models and inputs that the tests of the model share."""

import dataclasses
import functools
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from escnet import EscNet, EscNetConfig, build_model, preset

__all__ = ["image", "model", "narrow_large", "randomise", "relative_l2", "text", "tokens"]

_Module = TypeVar("_Module", bound=nn.Module)


@functools.cache
def model(name: str = "tiny") -> EscNet:
    """A model without gradients, shared by the tests: none may change it."""
    config = narrow_large() if name == "narrow-large" else preset(name)
    return randomise(build_model(config, seed=1)).requires_grad_(False)


@functools.cache
def narrow_large() -> EscNetConfig:
    """ViT-L/14 with SAM's, the fusion's and the decoder's sizes, a thin CLIP and a 12×12 grid."""
    large = preset("vit-l-14-336")
    clip = dataclasses.replace(
        large.clip,
        embed_dim=96,
        image_size=168,
        vision_width=128,
        vision_layers=4,
        text_width=96,
        text_heads=4,
        text_layers=2,
        vocab_size=600,
        skip_layers=(0, 2),
    )
    fusion = dataclasses.replace(large.fusion, window=6)
    return dataclasses.replace(large, name="narrow-large", clip=clip, fusion=fusion, blocks=2)


def randomise(module: _Module, seed: int = 0) -> _Module:
    """Move every parameter a little: fresh biases are 0 and fresh norms 1, and hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return module


def image(config: EscNetConfig, seed: int = 0) -> Tensor:
    """A normalised image [1, 3, S, S] of noise."""
    size = config.clip.image_size
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(seed))


def text(config: EscNetConfig, count: int, seed: int = 0) -> Tensor:
    """Unit-norm embeddings [count, D]."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, config.clip.embed_dim, generator=generator)
    return F.normalize(values, dim=1)


def tokens(config: EscNetConfig, lengths: tuple[int, ...], seed: int = 0) -> Tensor:
    """int32 tokens [texts, context length]: start, ``length`` random words, end, zeros."""
    generator = torch.Generator().manual_seed(seed)
    clip = config.clip
    result = torch.zeros(len(lengths), clip.context_length, dtype=torch.int32)
    for row, length in zip(result, lengths, strict=True):
        row[0], row[length + 1] = clip.vocab_size - 2, clip.vocab_size - 1
        words = torch.randint(1, clip.vocab_size - 2, (length,), generator=generator)
        row[1 : length + 1] = words.int()
    return result


def relative_l2(got: Tensor, expected: Tensor) -> float:
    """‖got - expected‖ / ‖expected‖, in float64."""
    assert got.shape == expected.shape
    got, expected = got.double(), expected.double()
    return float((got - expected).norm() / expected.norm())
