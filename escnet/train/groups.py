"""Which parameters are trained, and at which of the paper's two learning rates.

arXiv 2411.14723, section 4.1: the attention layers of CLIP, image and text tower, and the SAM
blocks at the small rate, everything else at the large one; what else CLIP has is frozen.
"""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final

from torch import nn

from escnet.model import EscNet

from .task import ParameterGroup

__all__ = ["parameter_groups"]

_CLIP_ATTENTION: Final = "clip.*resblocks.*.attn.*"
_SAM: Final = "blocks.*.sam.*"
#: What a forward pass never reads; without a gradient it would only decay. SAM's last
#: token-to-image attention updates tokens that nobody reads, and of SAM's prompts only foreground
#: points and masks are used.
_UNREAD: Final = (
    "blocks.*.sam.transformer.final_attn_token_to_image.*",
    "blocks.*.sam.transformer.norm_final_attn.*",
    "blocks.*.sam.prompt_encoder.point_embeddings.[023].*",
    "blocks.*.sam.prompt_encoder.no_mask_embed.*",
    # Prompts are relative to the peak of a map: what is added to all of it changes nothing, and
    # AdamW would make steps of the rounding errors of its gradient.
    "blocks.*.text_guidance.read_out.bias",
    "blocks.*.text_guidance.read_norm.bias",
)


def parameter_groups(
    model: EscNet, *, small_rate: float, large_rate: float, weight_decay: float
) -> list[ParameterGroup]:
    """The groups of a model; parameters in none of them are frozen.

    Args:
        model: the model.
        small_rate: learning rate of CLIP's attention and of the SAM blocks (the paper: 2e-6).
        large_rate: of everything else (the paper: 2e-4).
        weight_decay: of matrices and kernels; vectors (biases, norms) do not decay, as in CAT-Seg.
    """
    parts: dict[tuple[str, float], dict[str, nn.Parameter]] = {
        ("attention of CLIP", small_rate): {},
        ("SAM blocks", small_rate): {},
        ("everything else", large_rate): {},
    }
    clip, sam, rest = parts.values()
    for name, parameter in model.named_parameters():
        if _matches(name, _unread(model)):
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
        for group in by_dimension(name, parameters, rate=rate, weight_decay=weight_decay)
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


def _unread(model: EscNet) -> Sequence[str]:
    """The last block's scores lead to no further prompts, so its read-out is not trained."""
    last = f"blocks.{len(model.blocks) - 1}.text_guidance.read_"
    return (*_UNREAD, f"{last}norm.*", f"{last}out.*")


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
