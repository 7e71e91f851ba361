"""The sizes of an ESC-Net, as data.

Every number a module needs to be built stands in these frozen dataclasses; ``build.py`` is the one
file that turns them into modules. A checkpoint carries its configuration as JSON.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from escnet_runtime.errors import InputError
from escnet_runtime.ppg import PpgConstants

__all__ = ["ClipConfig", "DecoderConfig", "EscNetConfig", "FusionConfig", "SamConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipConfig:
    """Sizes of the CLIP that the model is built on, in open_clip's terms.

    ``skip_layers`` are the (0-based) vision blocks whose outputs guide the decoder.
    """

    embed_dim: int
    quick_gelu: bool
    image_size: int
    patch_size: int
    vision_width: int
    vision_layers: int
    vision_head_width: int
    text_width: int
    text_heads: int
    text_layers: int
    context_length: int
    vocab_size: int
    skip_layers: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamConfig:
    """Sizes of SAM's prompt encoder and two-way transformer (SAM ViT-B: 256, 8, 2, 2048, 16).

    ``mask_logit_scale`` maps a region's probability p in [0, 1] to the mask prompt's logit
    ``mask_logit_scale * (2 p - 1)``.
    """

    embed_dim: int
    heads: int
    depth: int
    mlp_dim: int
    mask_channels: int
    mask_logit_scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionConfig:
    """Sizes of the vision-language fusion: Swin windows and linear attention over categories."""

    hidden_dim: int
    heads: int
    window: int
    mlp_ratio: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """Channels of the decoder's two up-sampling stages and of the skip features that guide them.

    ``skip_widths`` are the channels between a skip's transposed convolution and its projection.
    """

    channels: tuple[int, int]
    skip_channels: tuple[int, int]
    skip_widths: tuple[int, int]
    norm_group: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EscNetConfig:
    """A whole ESC-Net. ``grid`` and ``logits`` are derived, in tokens and in logit cells a side."""

    name: str
    clip: ClipConfig
    sam: SamConfig
    fusion: FusionConfig
    decoder: DecoderConfig
    blocks: int
    ppg: PpgConstants
    templates: tuple[str, ...]
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]

    def __post_init__(self) -> None:
        size, patch = self.clip.image_size, self.clip.patch_size
        if size % patch:
            raise InputError(
                f"configuration {self.name!r}: image_size {size} is not a multiple of patch_size "
                f"{patch}; choose a multiple, for instance {size // patch * patch}"
            )
        if self.grid % self.fusion.window:
            raise InputError(
                f"configuration {self.name!r}: the grid of {self.grid}×{self.grid} tokens does not "
                f"divide into windows of {self.fusion.window}; choose a window that divides it"
            )
        if self.grid**2 > 1024:
            raise InputError(
                f"configuration {self.name!r}: the grid has {self.grid**2} tokens, expected at "
                "most 1024 (the prompt generator's limit); lower image_size or raise patch_size"
            )

    @property
    def grid(self) -> int:
        """Tokens a side of the square token grid."""
        return self.clip.image_size // self.clip.patch_size

    @property
    def logits(self) -> int:
        """Logit cells a side: the decoder doubles the grid twice."""
        return 4 * self.grid

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists, numbers and strings, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "EscNetConfig":
        """The inverse of :meth:`to_dict`.

        Raises:
            InputError: a key is unknown, missing, or its value has another type.
        """
        parts: dict[str, type[Any]] = {
            "clip": ClipConfig,
            "sam": SamConfig,
            "fusion": FusionConfig,
            "decoder": DecoderConfig,
            "ppg": PpgConstants,
        }
        values = _fields(cls, data, "configuration")
        for key, part in parts.items():
            if not isinstance(values[key], Mapping):
                raise InputError(f"configuration: {key!r} is {values[key]!r}, expected an object")
            values[key] = part(**_fields(part, values[key], f"configuration.{key}"))
        return cls(**values)


def _fields(kind: type[Any], data: Mapping[str, Any], where: str) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(kind)}
    unknown, missing = sorted(set(data) - names), sorted(names - set(data))
    if unknown or missing:
        raise InputError(
            f"{where}: unknown keys {unknown}, missing keys {missing}; expected {sorted(names)}"
        )
    return {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
