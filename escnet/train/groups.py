"""Which parameters are trained, and at which of the paper's two learning rates.

arXiv 2411.14723, section 4.1: the attention layers of CLIP, image and text tower, and the SAM
blocks at the small rate, everything else at the large one; what else CLIP has is frozen.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from torch import nn

from escnet.config import EscNetConfig, SamPrompts
from escnet.model import EscNet
from escnet_runtime.errors import InputError

from .task import ParameterGroup

__all__ = ["Rates", "by_dimension", "parameter_groups"]

_CLIP_ATTENTION: Final = "clip.*resblocks.*.attn.*"
_SAM: Final = "blocks.*.sam.*"
#: What a forward pass never reads; without a gradient it would only decay. SAM's last
#: token-to-image attention updates tokens that nobody reads.
_UNREAD: Final = (
    "blocks.*.sam.transformer.final_attn_token_to_image.*",
    "blocks.*.sam.transformer.norm_final_attn.*",
    # Prompts are relative to the peak of a map: what is added to all of it changes nothing, nor
    # what is added to all categories; AdamW would make steps of rounding errors of the gradient.
    "blocks.*.text_guidance.read_out.bias",
    "blocks.*.text_guidance.read_norm.bias",
)
#: Of SAM's prompt encoder, by what it is shown; point_embeddings.1 is a foreground point, 2 and 3
#: are a box's corners.
_UNREAD_EMBEDDINGS: Final[Mapping[SamPrompts, Sequence[str]]] = {
    "points+masks": ("point_embeddings.[023].*", "no_mask_embed.*"),
    "points": ("point_embeddings.[023].*", "mask_downscaling.*"),
    "masks": ("point_embeddings.*", "no_mask_embed.*"),
    "boxes": ("point_embeddings.[01].*", "mask_downscaling.*"),
}
#: A softmax over a single token is 1, whatever is asked of it.
_UNREAD_OF_ONE_TOKEN: Final = (
    "layers.*.self_attn.[qk]_proj.*",
    "layers.*.cross_attn_image_to_token.[qk]_proj.*",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """``[rates]`` of a configuration: learning rates, by default the paper's, and weight decay.

    Attributes:
        small: learning rate of CLIP's attention layers and of the SAM blocks.
        large: of everything else that is trained.
        weight_decay: AdamW's, of matrices and kernels; vectors (biases, norms) do not decay. The
            paper is silent; the value is CAT-Seg's, which exempts norms and embeddings, and lets
            biases decay.
    """

    small: float = 2e-6
    large: float = 2e-4
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("small", "large", "weight_decay"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; expected 0 or more")


def parameter_groups(
    model: EscNet, rates: Rates, *, scores_are_taught: bool = False
) -> list[ParameterGroup]:
    """The groups of a model; parameters in none of them are frozen.

    Args:
        model: the model.
        rates: how fast they learn.
        scores_are_taught: whether the maps that enter the blocks have a loss of their own.
    """
    parts: dict[tuple[str, float], dict[str, nn.Parameter]] = {
        ("attention of CLIP", rates.small): {},
        ("SAM blocks", rates.small): {},
        ("everything else", rates.large): {},
    }
    clip, sam, rest = parts.values()
    unread = _unread(model.config, scores_are_taught)
    for name, parameter in model.named_parameters():
        if _matches(name, unread):
            continue
        if fnmatchcase(name, _CLIP_ATTENTION):
            clip[name] = parameter
        elif fnmatchcase(name, _SAM):
            sam[name] = parameter
        elif not name.startswith("clip."):
            rest[name] = parameter
    return [
        group
        for (name, rate), parameters in parts.items()
        for group in by_dimension(name, parameters, rate=rate, weight_decay=rates.weight_decay)
    ]


def by_dimension(
    name: str, parameters: Mapping[str, nn.Parameter], *, rate: float, weight_decay: float
) -> list[ParameterGroup]:
    """One group with weight decay of what has two dimensions or more, one without of the rest."""

    def those(keep: Callable[[nn.Parameter], bool]) -> dict[str, nn.Parameter]:
        return {key: one for key, one in parameters.items() if keep(one)}

    kinds = (
        ("matrices", those(lambda one: one.ndim >= 2), weight_decay),
        ("vectors", those(lambda one: one.ndim < 2), 0.0),
    )
    return [
        ParameterGroup(name=f"{name}, {kind}", parameters=some, rate=rate, weight_decay=decay)
        for kind, some, decay in kinds
        if some
    ]


def _unread(config: EscNetConfig, scores_are_taught: bool) -> Sequence[str]:
    """Patterns of what has no gradient in a model of this configuration."""
    # The last block's scores lead to no further prompts; where masks are no prompts, only a loss of
    # their own gives scores a gradient: points and boxes are decisions.
    read = config.sam.uses_masks or scores_are_taught
    silent = f"{config.blocks - 1}" if read else "*"
    read_out = [f"blocks.{silent}.text_guidance.read_{part}.*" for part in ("norm", "out")]
    # Image features are for the blocks alone.
    projection = [] if config.blocks else ["block_projection.*"]
    encoder, transformer = (f"blocks.*.sam.{part}." for part in ("prompt_encoder", "transformer"))
    embeddings = [encoder + part for part in _UNREAD_EMBEDDINGS[config.sam.prompts]]
    if config.ppg.regions == 1 and config.sam.prompts != "masks":
        # The one region holds the peak, so it is never empty.
        embeddings.append(f"{encoder}not_a_point_embed.*")
    alone = config.sam.prompts == "masks" or (
        config.ppg.regions == 1 and config.sam.prompts != "boxes"
    )
    attention = [transformer + part for part in _UNREAD_OF_ONE_TOKEN] if alone else []
    return (*_UNREAD, *read_out, *projection, *embeddings, *attention)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
