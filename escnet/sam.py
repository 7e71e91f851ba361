"""The SAM block: pseudo prompts of every category, SAM's transformer, one enhanced image feature.

Paper: arXiv 2411.14723, section 3.2. The modules are ``segment_anything``'s own, so its checkpoints
load; their forward passes are written here in forms that export, each proven equal by a test.
"""

import torch
import torch.nn.functional as F
from segment_anything.modeling.prompt_encoder import PromptEncoder
from segment_anything.modeling.transformer import TwoWayTransformer
from torch import Tensor, nn

from .groups import by_group, weighted_sums
from .precision import product
from .two_way import LowRankKeys, two_way

__all__ = ["SamBlock"]

# Index of the foreground point among SAM's point embeddings (0 is background).
_FOREGROUND = 1


class SamBlock(nn.Module):
    """Prompts of n categories → the weighted sums of their enhanced image features.

    Args:
        prompt_encoder: built with ``input_image_size`` equal to the grid, so that a point is a
            grid pixel and its half-pixel shift is SAM's own. Each block has its own (the paper
            is silent).
        transformer: SAM's two-layer two-way transformer; its tokens are the prompts alone.
        mask_logit_scale: a region's probability p becomes the mask logit ``scale * (2 p - 1)``
            (the paper is silent).
    """

    def __init__(
        self, prompt_encoder: PromptEncoder, transformer: TwoWayTransformer, mask_logit_scale: float
    ) -> None:
        super().__init__()
        self.prompt_encoder = prompt_encoder
        self.transformer = transformer
        self.mask_logit_scale = mask_logit_scale

    def forward(
        self,
        block_features: Tensor,
        points: Tensor,
        point_labels: Tensor,
        regions: Tensor,
        probabilities: Tensor,
        weight: Tensor,
    ) -> Tensor:
        """Σ_n weight_n · enhanced_n over each group of categories.

        Args:
            block_features: [1, C, h, w].
            points: float32 [n, K, 2], (x, y) of grid pixels.
            point_labels: int32 [n, K], 1 or -1 (not a point).
            regions: int32 [n, h, w], region of each pixel, -1 for none.
            probabilities: float32 [n, h, w].
            weight: float32 [g, G]; 1/N for a mean over N categories, 0 for padding.

        Returns:
            float32 [g, C, h, w].
        """
        mask = self.embed_masks(regions, probabilities, point_labels).flatten(2).transpose(1, 2)
        last = self._last_mask_convolution()
        assert last.bias is not None
        # SAM adds the dense prompt to the image; both its bias and the image are shared.
        shared = block_features[0].flatten(1).T + last.bias
        keys = LowRankKeys(shared, mask, last.weight.flatten(1))
        tokens = self.embed_points(points, point_labels)
        enhanced = two_way(self.transformer, keys, self.position(), tokens)
        return self._group_sums(enhanced, weight, block_features)

    def forward_plain(
        self,
        block_features: Tensor,
        points: Tensor,
        point_labels: Tensor,
        regions: Tensor,
        probabilities: Tensor,
        weight: Tensor,
    ) -> Tensor:
        """The same as :meth:`forward` by SAM's own transformer on every category: the reference."""
        mask = self.embed_masks(regions, probabilities, point_labels)
        image = block_features + self._last_mask_convolution()(mask)
        position = self.position().T.reshape(1, *image.shape[1:]).expand_as(image)
        tokens = self.embed_points(points, point_labels)
        _, enhanced = self.transformer(image, position, tokens)
        return self._group_sums(enhanced, weight, block_features)

    def position(self) -> Tensor:
        """SAM's positional encoding of the grid, [h · w, C]."""
        height, width = self.prompt_encoder.image_embedding_size
        y, x = torch.meshgrid(
            torch.arange(height, dtype=torch.float32),
            torch.arange(width, dtype=torch.float32),
            indexing="ij",
        )
        device = self.prompt_encoder.no_mask_embed.weight.device
        return self._encode(torch.stack([x, y], dim=-1).flatten(0, 1).to(device))

    def embed_points(self, points: Tensor, point_labels: Tensor) -> Tensor:
        """Sparse prompt features [n, K, C], as ``PromptEncoder`` gives them without its padding.

        ``PromptEncoder`` assigns through boolean masks, which exports as NonZero (TensorRT parses
        none) and fails in fp16; ``torch.where`` says the same.
        """
        encoder = self.prompt_encoder
        encoded = self._encode(points) + encoder.point_embeddings[_FOREGROUND].weight
        return torch.where(
            (point_labels == _FOREGROUND)[:, :, None], encoded, encoder.not_a_point_embed.weight
        )

    def embed_masks(self, regions: Tensor, probabilities: Tensor, point_labels: Tensor) -> Tensor:
        """The category's mask prompt before SAM's last 1×1 convolution, [n, M, h, w].

        Each region's probabilities become logits, are resized to SAM's mask size and go through
        its mask down-scaling; the mean is over the valid regions (the paper is silent: taken
        before the last convolution, which is linear).
        """
        n, count = point_labels.shape
        height, width = regions.shape[1:]
        index = torch.arange(count, dtype=regions.dtype, device=regions.device)
        inside = regions[:, None] == index[None, :, None, None]
        probability = torch.where(inside, probabilities[:, None], 0.0)
        logits = self.mask_logit_scale * (2.0 * probability - 1.0)
        x = F.interpolate(
            logits.reshape(-1, 1, height, width),
            size=self.prompt_encoder.mask_input_size,
            mode="bilinear",
            align_corners=False,
        ).to(self._dtype)
        first, norm1, act1, second, norm2, act2 = list(self.prompt_encoder.mask_downscaling)[:6]
        x = act1(_layer_norm_2d(first(x), norm1))
        x = act2(_layer_norm_2d(second(x), norm2)).reshape(n, count, -1, height, width)
        valid = (point_labels == _FOREGROUND).to(x.dtype)
        share = valid / valid.sum(dim=1, keepdim=True).clamp(min=1.0)
        out: Tensor = (x * share[:, :, None, None, None]).sum(dim=1)
        return out

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.prompt_encoder.no_mask_embed.weight.dtype
        return dtype

    def _last_mask_convolution(self) -> nn.Conv2d:
        last = self.prompt_encoder.mask_downscaling[6]
        assert isinstance(last, nn.Conv2d)
        return last

    def _encode(self, pixels: Tensor) -> Tensor:
        """Fourier features of grid pixels (x, y), float32 up to the sine: [..., 2] → [..., C]."""
        height, width = self.prompt_encoder.input_image_size
        size = torch.tensor([width, height], dtype=torch.float32, device=pixels.device)
        matrix = self.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
        angle = 2.0 * torch.pi * product(2.0 * (pixels + 0.5) / size - 1.0, matrix)
        return torch.cat([angle.sin(), angle.cos()], dim=-1).to(self._dtype)

    def _group_sums(self, enhanced: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        """[n, P, C] → float32 [g, C, h, w]; accumulated in float32 because it grows with n."""
        sums = weighted_sums(by_group(enhanced, weight), weight)
        maps: Tensor = sums.transpose(1, 2).unflatten(2, like.shape[2:])
        return maps


def _layer_norm_2d(x: Tensor, norm: nn.Module) -> Tensor:
    """SAM's LayerNorm2d as a LayerNormalization: [b, c, h, w], over c.

    The hand-written form squares in fp16, and TensorRT warns of the overflow.
    """
    assert isinstance(norm.weight, Tensor)
    assert isinstance(norm.bias, Tensor)
    assert isinstance(norm.eps, float)
    weight, bias = norm.weight, norm.bias
    normed = F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, norm.eps)
    return normed.permute(0, 3, 1, 2)
