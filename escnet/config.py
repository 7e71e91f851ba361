"""The sizes of an ESC-Net, as data.

Every number a module needs to be built stands in these frozen dataclasses; ``build.py`` is the one
file that turns them into modules. A checkpoint carries its configuration as JSON.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

from escnet_runtime.errors import BundleFormatError, InputError, VocabularyError
from escnet_runtime.manifest import MAX_IMAGE_SIZE, MAX_TEMPLATES
from escnet_runtime.ppg import PpgConstants
from escnet_runtime.preprocess import Preprocessing
from escnet_runtime.strict_json import typed
from escnet_runtime.vocabulary import checked_templates

__all__ = [
    "VOCABULARY_SIZES",
    "ClipConfig",
    "DecoderConfig",
    "EscNetConfig",
    "FusionConfig",
    "SamConfig",
    "SamPrompts",
    "shows_masks",
]

#: What of a category's pseudo prompts goes into SAM; see :class:`SamConfig`.
SamPrompts: TypeAlias = Literal["points+masks", "points", "masks", "boxes"]

#: Ids that CLIP's tokenizer can have: those of all bytes, inside a word and at its end, with start
#: and end of a text; and with all of its merges.
VOCABULARY_SIZES: Final = range(2 * 256 + 2, 49408 + 1)

_MOST_TOKENS: Final = 1024  # a prompt generator's kernel has a thread for each

# Far above every real model: a checkpoint says how many layers to build before any is compared.
_LAYERS: Final = frozenset({"vision_layers", "text_layers", "depth"})
_MOST_LAYERS: Final = 256
_MOST_SIZE: Final = 2**20
#: Of a text: start, end and one between. A model holds a mask [length, length], a file does not.
_CONTEXT_LENGTHS: Final = range(3, 4096 + 1)
_MOST_LOGIT: Final = 1e4  # of a mask prompt: what float16 holds, and far above every real one

# Fields of SamConfig that configurations written before they existed do not have, with the value
# that was the only one then: the paper's form.
_SAM_FIELDS_ADDED_LATER: Final = {"in_blocks": True, "prompts": "points+masks"}


def shows_masks(prompts: SamPrompts) -> bool:
    """Whether masks are among the prompts that SAM is shown."""
    return prompts in ("points+masks", "masks")


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

    The last two are what the paper's ablations vary; bundles have the paper's own form alone.

    Attributes:
        mask_logit_scale: maps a region's probability p in [0, 1] to the mask prompt's logit
            ``mask_logit_scale * (2 p - 1)``.
        in_blocks: whether an ESC block has its SAM block. Without it the image features pass the
            blocks unchanged and only guide; there are no prompts, and ``prompts`` says nothing.
        prompts: "points+masks" is the paper's. "points" and "boxes" (the corners of each region's
            bounding box) come with SAM's own embedding of "no mask" as the dense prompt, "masks"
            with its own embedding of "not a point" as the one token.
    """

    embed_dim: int
    heads: int
    depth: int
    mlp_dim: int
    mask_channels: int
    mask_logit_scale: float
    in_blocks: bool
    prompts: SamPrompts

    @property
    def uses_masks(self) -> bool:
        """Whether masks are among the prompts: nothing else in a prompt passes gradients on."""
        return self.in_blocks and shows_masks(self.prompts)


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
    """A whole ESC-Net.

    Attributes:
        name: of the preset that it is, or comes from.
        clip, sam, fusion, decoder: sizes of its parts.
        blocks: ESC blocks; with 0 the decoder reads the embedding of CLIP's correlation itself.
        ppg: constants of the pseudo prompt generator.
        templates: texts with one "{}" each, where a category's name goes; embeddings are averaged.
        image_mean, image_std: of each channel (RGB, 0 to 1), as CLIP was trained with.
    """

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
        _check_positive(self)
        _check_plausible(self)
        _check_divisions(self)
        _check_skips(self)
        _check_texts(self)
        self._check_grid()
        self._check_inputs()

    def _check_grid(self) -> None:
        size, patch = self.clip.image_size, self.clip.patch_size
        if size % patch:
            raise InputError(
                f"configuration {self.name!r}: image_size {size} is not a multiple of patch_size "
                f"{patch}; choose a multiple, for instance {-(-size // patch) * patch}"
            )
        if self.grid % self.fusion.window:
            raise InputError(
                f"configuration {self.name!r}: the grid of {self.grid}×{self.grid} tokens does not "
                f"divide into windows of {self.fusion.window}; choose a window that divides it"
            )
        if self.grid**2 > _MOST_TOKENS:
            raise InputError(
                f"configuration {self.name!r}: the grid has {self.grid**2} tokens, expected at "
                f"most {_MOST_TOKENS} (the prompt generator's limit); lower image_size or raise "
                "patch_size"
            )

    def _check_inputs(self) -> None:
        if self.clip.image_size > MAX_IMAGE_SIZE:
            raise InputError(
                f"configuration {self.name!r}: clip.image_size is {self.clip.image_size}, expected "
                f"at most {MAX_IMAGE_SIZE:,}"
            )
        try:
            _ = self.preprocessing
        except InputError as error:
            raise InputError(
                f"configuration {self.name!r}: image_mean and image_std: {error}"
            ) from error
        scale = self.sam.mask_logit_scale
        if not abs(scale) <= _MOST_LOGIT:
            raise InputError(
                f"configuration {self.name!r}: sam.mask_logit_scale is {scale}, expected a number "
                f"within ±{_MOST_LOGIT:,.0f}"
            )

    @property
    def grid(self) -> int:
        """Tokens a side of the square token grid."""
        return self.clip.image_size // self.clip.patch_size

    @property
    def logits(self) -> int:
        """Logit cells a side: the decoder doubles the grid twice."""
        return 4 * self.grid

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the model's input."""
        return Preprocessing(size=self.clip.image_size, mean=self.image_mean, std=self.image_std)

    @property
    def image_sizes(self) -> tuple[int, ...]:
        """The image sizes of models with these weights, px a side: whole windows of patches."""
        step = self.clip.patch_size * self.fusion.window
        most = math.isqrt(_MOST_TOKENS) * self.clip.patch_size
        return tuple(range(step, most + 1, step))

    def at_size(self, image_size: int) -> "EscNetConfig":
        """The same for an image of ``image_size`` px a side.

        Its weights have the same shapes, but for CLIP's positions, one for each token
        (:func:`escnet.weights.resized`).

        Raises:
            InputError: the size is none of :attr:`image_sizes`.
        """
        if image_size not in self.image_sizes:
            sizes = ", ".join(map(str, self.image_sizes))
            raise InputError(
                f"got an image size of {image_size} px for {self.name!r}; expected one of {sizes}: "
                f"windows of {self.fusion.window}×{self.fusion.window} patches of "
                f"{self.clip.patch_size} px, and at most {_MOST_TOKENS} patches"
            )
        clip = dataclasses.replace(self.clip, image_size=image_size)
        return dataclasses.replace(self, clip=clip)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists, numbers and strings, as JSON gives them back."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "EscNetConfig":
        """The inverse of :meth:`to_dict`; also of what an older version wrote.

        Raises:
            InputError: a key is unknown, missing, or its value has another type; or the sizes do
                not fit one another.
        """
        fields = dict(data)
        if isinstance(fields.get("sam"), Mapping):
            fields["sam"] = {**_SAM_FIELDS_ADDED_LATER, **fields["sam"]}
        try:
            return typed(fields, cls)
        except BundleFormatError as error:
            raise InputError(f"configuration: {error}") from error


def _check_positive(config: EscNetConfig) -> None:
    for part in ("clip", "sam", "fusion", "decoder"):
        for key, value in dataclasses.asdict(getattr(config, part)).items():
            sizes = value if isinstance(value, tuple) else (value,)
            if key != "skip_layers" and any(type(size) is int and size < 1 for size in sizes):
                raise InputError(
                    f"configuration {config.name!r}: {part}.{key} is {value}, expected at least 1"
                )
    if config.blocks < 0:
        raise InputError(f"configuration {config.name!r}: blocks is {config.blocks}, expected ≥ 0")
    if config.sam.prompts not in get_args(SamPrompts):
        raise InputError(
            f"configuration {config.name!r}: sam.prompts is {config.sam.prompts!r}, expected one "
            f"of {', '.join(get_args(SamPrompts))}"
        )


def _check_plausible(config: EscNetConfig) -> None:
    """Refuse sizes that no model has, before modules are built for them."""
    sizes = [("blocks", config.blocks, _MOST_LAYERS)]
    for part in ("clip", "sam", "fusion", "decoder"):
        for key, value in dataclasses.asdict(getattr(config, part)).items():
            most = _MOST_LAYERS if key in _LAYERS else _MOST_SIZE
            each = value if isinstance(value, tuple) else (value,)
            sizes += [(f"{part}.{key}", size, most) for size in each if type(size) is int]
    for name, size, most in sizes:
        if size > most:
            raise InputError(
                f"configuration {config.name!r}: {name} is {size!r:.40}, expected at most {most:,}"
            )


def _check_divisions(config: EscNetConfig) -> None:
    clip, sam, fusion, decoder = config.clip, config.sam, config.fusion, config.decoder
    for name, whole, divisor, of in (
        ("clip.vision_width", clip.vision_width, clip.vision_head_width, "vision_head_width"),
        ("clip.text_width", clip.text_width, clip.text_heads, "text_heads"),
        # SAM's cross-attention works at half the width.
        ("sam.embed_dim", sam.embed_dim, 2 * sam.heads, "2 * heads"),
        ("sam.mask_channels", sam.mask_channels, 4, "SAM's first mask convolution"),
        ("fusion.hidden_dim", fusion.hidden_dim, fusion.heads, "heads"),
        ("decoder.channels[0]", decoder.channels[0], decoder.norm_group, "norm_group"),
        ("decoder.channels[1]", decoder.channels[1], decoder.norm_group, "norm_group"),
    ):
        if whole % divisor:
            raise InputError(
                f"configuration {config.name!r}: {name} is {whole}, expected a multiple of "
                f"{divisor} ({of})"
            )
    if sam.mask_channels == 4:
        raise InputError(
            f"configuration {config.name!r}: sam.mask_channels is 4, expected at least 8: the norm "
            "behind SAM's first mask convolution would be over one channel, which is the same for "
            "every mask"
        )


def _check_skips(config: EscNetConfig) -> None:
    layers, last = config.clip.skip_layers, config.clip.vision_layers - 2
    if last < 0:
        raise InputError(
            f"configuration {config.name!r}: clip.vision_layers is {config.clip.vision_layers}, "
            "expected at least 2: skip features come from blocks before the last one"
        )
    if not all(0 <= layer <= last for layer in layers):
        raise InputError(
            f"configuration {config.name!r}: clip.skip_layers is {layers}, expected blocks from 0 "
            f"to {last} (the last block's output is no skip feature)"
        )
    widths = (config.fusion.hidden_dim, config.decoder.channels[0])
    for skip, width in zip(config.decoder.skip_channels, widths, strict=True):
        if skip >= width:
            raise InputError(
                f"configuration {config.name!r}: decoder.skip_channels has {skip}, expected less "
                f"than the {width} channels of the stage it guides"
            )


def _check_texts(config: EscNetConfig) -> None:
    """What the tokenizer and a bundle refuse is refused before anything is built or trained."""
    for name, value, sizes in (
        ("clip.vocab_size", config.clip.vocab_size, VOCABULARY_SIZES),
        ("clip.context_length", config.clip.context_length, _CONTEXT_LENGTHS),
    ):
        if value not in sizes:
            raise InputError(
                f"configuration {config.name!r}: {name} is {value}, expected {sizes[0]} to "
                f"{sizes[-1]:,}"
            )
    if len(config.templates) > MAX_TEMPLATES:
        raise InputError(
            f"configuration {config.name!r}: there are {len(config.templates):,} templates, "
            f"expected at most {MAX_TEMPLATES:,}"
        )
    try:
        checked_templates(config.templates)
    except VocabularyError as error:
        raise InputError(f"configuration {config.name!r}: templates: {error}") from error
