"""ESC-Net: open-vocabulary semantic segmentation (CVPR 2025, arXiv 2411.14723).

The methods of :class:`EscNet` are the graphs that are exported; ``forward`` strings them together
in one batch of all categories, ``forward_plain`` does the same without sharing anything.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from open_clip.model import CLIP
from torch import Tensor, nn

from escnet_runtime.errors import InputError

from .block import BlockWithoutSam, EscBlock
from .clip import dense_features, encode_text, unit_norm
from .config import EscNetConfig
from .decoder import Decoder, SkipProjection
from .groups import group_weights, sum_of_groups
from .ppg import PromptSource, TorchPrompts, pseudo_prompts
from .precision import product

__all__ = ["EscNet", "ImageFeatures", "Trace"]


class ImageFeatures(NamedTuple):
    """What the image encoder gives for b images.

    ``features`` float32 [b, D, h, w] has unit norm over D; ``block_features`` is [b, C, h, w];
    ``skip0`` and ``skip1`` are at 2 and 4 times the grid.
    """

    features: Tensor
    block_features: Tensor
    skip0: Tensor
    skip1: Tensor

    def of(self, index: int) -> "ImageFeatures":
        """Those of one image of the batch, b = 1."""
        return ImageFeatures(*(tensor[index : index + 1] for tensor in self))


class Trace(NamedTuple):
    """What a forward pass went through: scores and prompts entering each block, and the logits.

    Blocks without a SAM block take no prompts.
    """

    scores: list[Tensor]
    prompts: list[TorchPrompts]
    logits: Tensor


class EscNet(nn.Module):
    """The whole model. Submodules are built elsewhere (``build.py``) and handed in.

    Args:
        config: the sizes the submodules were built with; carried for export and checkpoints.
        clip: open_clip's CLIP.
        block_projection: 1×1 convolution D → C of the dense features, for the SAM blocks.
        skips: projections of two earlier CLIP blocks, for the decoder.
        correlation_embedding: 1×1 convolution of the correlation map, 1 → E channels.
        blocks: the ESC blocks; all of them have their SAM block, or none has.
        decoder: the decoder.
    """

    def __init__(
        self,
        config: EscNetConfig,
        *,
        clip: CLIP,
        block_projection: nn.Conv2d,
        skips: tuple[SkipProjection, SkipProjection],
        correlation_embedding: nn.Conv2d,
        blocks: Sequence[EscBlock | BlockWithoutSam],
        decoder: Decoder,
    ) -> None:
        super().__init__()
        self.config = config
        self.clip = clip
        self.block_projection = block_projection
        self.skip0, self.skip1 = skips
        self.correlation_embedding = correlation_embedding
        self.blocks = nn.ModuleList(blocks)
        self.decoder = decoder

    @property
    def typed_blocks(self) -> list[EscBlock | BlockWithoutSam]:
        """All ESC blocks, typed: ``blocks`` is a ModuleList, which knows no types."""
        return cast(list[EscBlock | BlockWithoutSam], list(self.blocks))

    @property
    def esc_blocks(self) -> list[EscBlock]:
        """The ESC blocks that have a SAM block, typed."""
        return [block for block in self.blocks if isinstance(block, EscBlock)]

    def encode_image(self, image: Tensor) -> ImageFeatures:
        """``image_encoder``: normalised image [b, 3, S, S] → :class:`ImageFeatures`."""
        grid = (self.config.grid, self.config.grid)
        dense = dense_features(self.clip.visual, image, self.config.clip.skip_layers)
        # The paper is silent on what the SAM blocks see: CLIP's features before normalisation,
        # brought to SAM's width by a 1×1 convolution.
        maps = dense.projected.transpose(1, 2).unflatten(2, grid)
        return ImageFeatures(
            features=unit_norm(dense.projected).transpose(1, 2).unflatten(2, grid),
            block_features=self.block_projection(maps),
            skip0=self.skip0(dense.skips[0]),
            skip1=self.skip1(dense.skips[1]),
        )

    def encode_text(self, tokens: Tensor) -> Tensor:
        """``text_encoder``: int32 tokens [t, l] → unit-norm embeddings, float32 [t, D]."""
        return encode_text(self.clip, tokens)

    def correlate(self, features: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """``correlation``: cosine of every pixel with every category, and its embedding.

        Args:
            features: float32 [1, D, h, w], unit norm.
            text: float32 [n, D], unit norm.

        Returns:
            scores float32 [n, h, w] and embedding [n, h, w, E]. Prompts are decided on the
            scores, so they stay in float32 at every precision.
        """
        scores = product(text, features[0].flatten(1)).unflatten(1, features.shape[2:])
        embed = self.correlation_embedding
        # A 1×1 convolution of one channel, its result where the Swin layers want it: channels last.
        return scores, F.linear(
            scores[..., None].to(embed.weight.dtype), embed.weight.flatten(1), embed.bias
        )

    def decode(self, embedding: Tensor, skip0: Tensor, skip1: Tensor) -> Tensor:
        """``decoder``: embedding [n, h, w, E] and skips → logits float32 [n, 4h, 4w]."""
        logits: Tensor = self.decoder(embedding, skip0, skip1)
        return logits

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """Logits float32 [N, 4h, 4w] of one image [1, 3, S, S] and N text embeddings [N, D].

        Raises:
            InputError: another shape, or no text.
        """
        return self.trace(image, text).logits

    def forward_plain(self, image: Tensor, text: Tensor) -> Tensor:
        """The same with nothing shared between categories: the reference for tests and counts."""
        return self.trace(image, text, plain=True).logits

    def trace(self, image: Tensor, text: Tensor, *, plain: bool = False) -> Trace:
        """A forward pass that keeps the scores and prompts of each block; see ``forward``."""
        self._require(image, text)
        return self.segment(self.encode_image(image), text, plain=plain)

    def segment(
        self,
        encoded: ImageFeatures,
        text: Tensor,
        *,
        plain: bool = False,
        checkpoint: bool = False,
        prompts: PromptSource | None = None,
    ) -> Trace:
        """All that follows the encoders, for one image.

        Args:
            encoded: of one image; :meth:`ImageFeatures.of` takes one out of a batch.
            text: [N, D], unit norm.
            plain: nothing is shared between categories.
            checkpoint: keep no activations inside blocks and decoder for the backward pass, which
                computes them again: memory for a third more time.
            prompts: replaces the prompt generator.

        Returns:
            Scores float32 [N, h, w] (before each block and after the last), the prompts of each
            block that has a SAM block, and logits float32 [N, 4h, 4w].
        """
        step = _checkpointed if checkpoint else _direct
        features, skips = encoded.block_features, (encoded.skip0, encoded.skip1)
        scores, embedding = self.correlate(encoded.features, text)
        weight = group_weights(len(text), device=text.device)
        all_scores, all_prompts = [scores], []
        for block in self.typed_blocks:
            if isinstance(block, EscBlock):
                made = (prompts or pseudo_prompts)(scores, self.config.ppg)
                all_prompts.append(made)
                enhanced = step(
                    block.sam.forward_plain if plain else block.sam.forward,
                    features,
                    made.points,
                    made.point_labels,
                    made.regions,
                    made.probabilities,
                    weight,
                )
                features, guidance = block.fuse(features, sum_of_groups(enhanced)[None])
            else:
                guidance = block.guide(features)
            if plain:
                embedding, scores = block.refine_plain(embedding, guidance, text, scores)
            else:
                embedding, kv, k = step(block.refine_image, embedding, guidance, text, weight)
                kv, k = sum_of_groups(kv), sum_of_groups(k)
                embedding, scores = step(block.refine_text, embedding, text, scores, kv, k)
            # The paper is silent on what flows on: features, embedding, C' for the next prompts.
            all_scores.append(scores)
        decode = functools.partial(self.decoder, plain=plain)
        logits: Tensor = step(decode, embedding, *skips)
        return Trace(all_scores, all_prompts, logits)

    def _require(self, image: Tensor, text: Tensor) -> None:
        size, dimension = self.config.clip.image_size, self.config.clip.embed_dim
        if image.shape != (1, 3, size, size):
            raise InputError(
                f"image has the shape {list(image.shape)}; expected [1, 3, {size}, {size}]: one "
                "normalised image (encode_image takes several)"
            )
        if text.ndim != 2 or text.shape[1] != dimension or text.shape[0] < 1:
            raise InputError(
                f"text has the shape {list(text.shape)}; expected [N, {dimension}], an embedding "
                "from encode_text for each of at least one category"
            )


def _direct(function: Callable[..., Any], *inputs: Tensor) -> Any:
    return function(*inputs)


def _checkpointed(function: Callable[..., Any], *inputs: Tensor) -> Any:
    return torch.utils.checkpoint.checkpoint(function, *inputs, use_reentrant=False)
