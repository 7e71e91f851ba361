"""A forward pass chunk by chunk of categories: memory is that of a chunk, however many there are.

What joins categories is a sum, formed in fixed groups and added up in their order, as in the
runtime's pipeline (``escnet_runtime.pipeline``) and with its chunks.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from escnet_runtime.groups import GROUP, category_chunks
from escnet_runtime.groups import group_weights as runtime_weights

from .block import BlockWithoutSam, EscBlock
from .groups import sum_of_groups
from .model import EscNet
from .ppg import pseudo_prompts

__all__ = ["CHUNK", "logits_in_chunks"]

#: Categories at a time, in the bundles that escnet-export writes too: measured for vit-b-16 on a
#: CPU (benchmarks/results).
CHUNK: Final = 16


@dataclass(slots=True)
class _Part:
    """One chunk between blocks: ``count`` categories and, if that is 1, a second row as padding.

    ``text`` is [n, D], ``weight`` [g, G], ``scores`` [n, h, w], ``embedding`` [n, h, w, E].
    """

    count: int
    text: Tensor
    weight: Tensor
    scores: Tensor
    embedding: Tensor


@torch.no_grad()
def logits_in_chunks(model: EscNet, image: Tensor, text: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """What :meth:`EscNet.forward` gives, up to rounding, without gradients.

    Args:
        model: in evaluation mode.
        image: [1, 3, S, S], normalised.
        text: [N, D], unit norm.
        chunk: categories at a time, rounded up to whole groups.

    Returns:
        float32 [N, 4h, 4w].
    """
    encoded = model.encode_image(image)
    parts = []
    for where in category_chunks(len(text), chunk, GROUP):
        own, here = text[where], where.stop - where.start
        # A category that is alone in its chunk is doubled; escnet_runtime.pipeline says why.
        own = own.repeat(2, 1) if here == 1 < len(text) else own
        weight = torch.from_numpy(runtime_weights(here, len(text), GROUP)).to(text.device)
        parts.append(_Part(here, own, weight, *model.correlate(encoded.features, own)))
    features = encoded.block_features
    for block in model.typed_blocks:
        if isinstance(block, EscBlock):
            features, guidance = block.fuse(features, _enhanced(model, block, features, parts))
        else:
            guidance = block.guide(features)
        _refine(block, guidance, parts)
    return torch.cat(
        [model.decode(part.embedding, encoded.skip0, encoded.skip1)[: part.count] for part in parts]
    )


def _enhanced(model: EscNet, block: EscBlock, features: Tensor, parts: list[_Part]) -> Tensor:
    """The mean of all categories' enhanced features, [1, C, h, w]."""
    total: Tensor | None = None
    for part in parts:
        made = pseudo_prompts(part.scores, model.config.ppg)
        sums = block.sam(
            features,
            made.points,
            made.point_labels,
            made.regions,
            made.probabilities,
            part.weight,
        )
        total = _added(total, sums)
    assert total is not None
    return total[None]


def _refine(block: EscBlock | BlockWithoutSam, guidance: Tensor, parts: list[_Part]) -> None:
    """Scores and embeddings of all parts, refined in place."""
    kv: Tensor | None = None
    k: Tensor | None = None
    for part in parts:
        refined = block.refine_image(part.embedding, guidance, part.text, part.weight)
        part.embedding, kv_sums, k_sums = refined
        kv, k = _added(kv, kv_sums), _added(k, k_sums)
    assert kv is not None
    assert k is not None
    for part in parts:
        part.embedding, part.scores = block.refine_text(
            part.embedding, part.text, part.scores, kv, k
        )


def _added(total: Tensor | None, sums: Tensor) -> Tensor:
    """``total`` plus the sums of further groups, [g, ...], added in the order of the groups."""
    return sum_of_groups(sums if total is None else torch.cat([total[None], sums]))
