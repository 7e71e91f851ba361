"""The SAM block: pseudo prompts of every category, SAM's transformer, one enhanced image feature.

Paper: arXiv 2411.14723, section 3.2. The modules are ``segment_anything``'s own, so its checkpoints
load; their forward passes are written here in forms that export, each proven equal by a test.
"""

import torch
import torch.nn.functional as F
from segment_anything.modeling.prompt_encoder import PromptEncoder
from segment_anything.modeling.transformer import TwoWayTransformer
from torch import Tensor, nn

from .config import SamPrompts, shows_masks
from .groups import by_group, weighted_sums
from .precision import composed, product
from .two_way import DenseKeys, LowRankKeys, two_way

__all__ = ["SamBlock", "bounding_boxes"]

# Indices among SAM's point embeddings (0 is a background point), and the label of a valid region.
_FOREGROUND = 1
_UPPER_LEFT = 2
_LOWER_RIGHT = 3

# Bilinear resizing to four times the size: rows 4 i to 4 i + 3 are these shares of rows i - 1, i
# and i + 1. Two at a time, as a convolution of stride 2 takes them.
_TAPS = (
    ((0.375, 0.625, 0.0), (0.125, 0.875, 0.0)),
    ((0.0, 0.875, 0.125), (0.0, 0.625, 0.375)),
)


class SamBlock(nn.Module):
    """Prompts of n categories → the weighted sums of their enhanced image features.

    Args:
        prompt_encoder: built with ``input_image_size`` equal to the grid, so that a point is a
            grid pixel and its half-pixel shift is SAM's own. Each block has its own (the paper
            is silent).
        transformer: SAM's two-layer two-way transformer; its tokens are the prompts alone.
        mask_logit_scale: a region's probability p becomes the mask logit ``scale * (2 p - 1)``
            (the paper is silent).
        prompts: what of the prompts SAM is shown; see :class:`escnet.config.SamConfig`.
    """

    def __init__(
        self,
        prompt_encoder: PromptEncoder,
        transformer: TwoWayTransformer,
        mask_logit_scale: float,
        prompts: SamPrompts = "points+masks",
    ) -> None:
        super().__init__()
        self.prompt_encoder = prompt_encoder
        self.transformer = transformer
        self.mask_logit_scale = mask_logit_scale
        self.prompts: SamPrompts = prompts

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
        keys = self._keys(block_features, regions, probabilities, point_labels)
        tokens = self._tokens(points, point_labels, regions)
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
        if shows_masks(self.prompts):
            mask = self.embed_masks_plain(regions, probabilities, point_labels)
            image = block_features + self._last_mask_convolution()(mask)
        else:
            dense = self.prompt_encoder.no_mask_embed.weight[:, :, None, None]
            image = (block_features + dense).expand(len(points), -1, -1, -1)
        position = self.position().T.reshape(1, *image.shape[1:]).expand_as(image)
        tokens = self._tokens(points, point_labels, regions)
        _, enhanced = self.transformer(image, position, tokens)
        return self._group_sums(enhanced, weight, block_features)

    def _keys(
        self, block_features: Tensor, regions: Tensor, probabilities: Tensor, point_labels: Tensor
    ) -> DenseKeys | LowRankKeys:
        """The image with the dense prompt, which SAM adds to it: [n, P, C]."""
        if not shows_masks(self.prompts):
            none = self.prompt_encoder.no_mask_embed.weight
            return DenseKeys((block_features[0].flatten(1).T + none).expand(len(regions), -1, -1))
        mask = self.embed_masks(regions, probabilities, point_labels).flatten(2).transpose(1, 2)
        last = self._last_mask_convolution()
        assert last.bias is not None
        # Both the convolution's bias and the image are shared.
        shared = block_features[0].flatten(1).T + last.bias
        return LowRankKeys(shared, mask, last.weight.flatten(1))

    def _tokens(self, points: Tensor, point_labels: Tensor, regions: Tensor) -> Tensor:
        """The sparse prompts, [n, K, C]; of boxes [n, 2 K, C], of masks [n, 1, C]."""
        if self.prompts == "boxes":
            return self.embed_boxes(bounding_boxes(regions, points.shape[1]), point_labels)
        if self.prompts == "masks":
            # K equal tokens would do the same as one: a softmax over equal keys only averages.
            token: Tensor = self.prompt_encoder.not_a_point_embed.weight
            return token.expand(len(points), 1, -1)
        return self.embed_points(points, point_labels)

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

    def embed_boxes(self, boxes: Tensor, point_labels: Tensor) -> Tensor:
        """Two corners of each region's box, as ``PromptEncoder`` embeds boxes: [n, 2 K, C].

        Args:
            boxes: float32 [n, K, 4], x and y of the upper left, then of the lower right pixel.
            point_labels: int32 [n, K]; corners of a region that is not there are "not a point".
        """
        encoder = self.prompt_encoder
        kinds = (_UPPER_LEFT, _LOWER_RIGHT)
        corner = torch.cat([encoder.point_embeddings[kind].weight for kind in kinds])
        encoded = self._encode(boxes.unflatten(2, (2, 2))) + corner
        valid = (point_labels == _FOREGROUND)[:, :, None, None]
        tokens = torch.where(valid, encoded, encoder.not_a_point_embed.weight)
        return tokens.flatten(1, 2)

    def embed_masks(self, regions: Tensor, probabilities: Tensor, point_labels: Tensor) -> Tensor:
        """The category's mask prompt before SAM's last 1×1 convolution, [n, M, h, w].

        Each region's probabilities become logits, are resized to SAM's mask size and go through
        its mask down-scaling; the mean is over the valid regions (the paper is silent: taken
        before the last convolution, which is linear).
        """
        (n, count), (height, width) = point_labels.shape, regions.shape[1:]
        inside = _inside(regions, count)
        probability = torch.where(inside, probabilities[:, None], 0.0).to(self._dtype)
        _, norm1, act1, second, norm2, act2 = list(self.prompt_encoder.mask_downscaling)[:6]
        assert isinstance(second, nn.Conv2d)
        assert second.bias is not None
        # Pixels are the last axis, [n K, c, h w]: what follows needs no transposition, and whole
        # rows are copied, not single numbers.
        x = _neighbours(probability.flatten(0, 1))
        weight, bias = self._first_mask_product()
        # The four pixels under one of the grid are what the second convolution takes together.
        x = act1(_normed_product(weight, bias, x, norm1))
        weight = second.weight.float().permute(0, 2, 3, 1).flatten(1)
        x = act2(_normed_product(weight, second.bias.float(), x, norm2))
        maps = x.unflatten(2, (height, width)).unflatten(0, (n, count))
        return _mean_over_regions(maps, point_labels)

    def embed_masks_plain(
        self, regions: Tensor, probabilities: Tensor, point_labels: Tensor
    ) -> Tensor:
        """:meth:`embed_masks` step by step, as ``PromptEncoder`` does it: the reference."""
        n, count = point_labels.shape
        height, width = regions.shape[1:]
        probability = torch.where(_inside(regions, count), probabilities[:, None], 0.0)
        logits = self.mask_logit_scale * (2.0 * probability - 1.0)
        x = F.interpolate(
            logits.reshape(-1, 1, height, width),
            size=self.prompt_encoder.mask_input_size,
            mode="bilinear",
            align_corners=False,
        ).to(self._dtype)
        x = self.prompt_encoder.mask_downscaling[:6](x).reshape(n, count, -1, height, width)
        return _mean_over_regions(x, point_labels)

    def _first_mask_product(self) -> tuple[Tensor, Tensor]:
        """Mask logits, their resizing and SAM's first convolution as one product.

        Logits are linear in the probability; resizing to four times the grid mixes a pixel with its
        neighbours by fixed shares; the convolution, of stride and side 2, takes two of these rows
        and columns at a time. So each of the four results under a pixel of the grid is a product
        over 3×3 pixels. Besides, cuDNN has no fast convolution for so few channels in half
        precision.

        Returns:
            Weights [4 · c, 9] and bias [4 · c], in float32.
        """
        first = self.prompt_encoder.mask_downscaling[0]
        assert isinstance(first, nn.Conv2d)
        assert first.bias is not None
        size, grid = self.prompt_encoder.mask_input_size, self.prompt_encoder.image_embedding_size
        assert tuple(size) == (4 * grid[0], 4 * grid[1])
        assert first.kernel_size == first.stride == (2, 2)
        kernel, scale = first.weight[:, 0].float(), self.mask_logit_scale
        taps = torch.tensor(_TAPS, device=kernel.device)
        shares = composed("pkt,qlu,ckl->pqctu", taps, taps, kernel).reshape(-1, 9)
        bias = first.bias.float() - scale * kernel.sum((1, 2))
        return 2.0 * scale * shares, bias.repeat(4)

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


def bounding_boxes(regions: Tensor, count: int) -> Tensor:
    """The box of each of ``count`` regions: first and last pixel, as SAM's automatic masks have it.

    Args:
        regions: int32 [n, h, w], region of each pixel, -1 for none.
        count: K, regions of a category.

    Returns:
        float32 [n, K, 4], x0 y0 x1 y1 in grid pixels; a region without a pixel has 0 0 0 0.
    """
    inside = _inside(regions, count)
    sides = []
    for along in (inside.any(2), inside.any(3)):  # columns (x), then rows (y)
        place = torch.arange(along.shape[2], device=along.device)
        first = place.masked_fill(~along, along.shape[2]).amin(2)
        sides.append((first, place.masked_fill(~along, -1).amax(2)))
    (x0, x1), (y0, y1) = sides
    boxes = torch.stack([x0, y0, x1, y1], 2)
    return torch.where((x1 >= 0)[:, :, None], boxes, 0).float()


def _inside(regions: Tensor, count: int) -> Tensor:
    """Whether a pixel is in a region: bool [n, K, h, w] of the region of each pixel, [n, h, w]."""
    index = torch.arange(count, dtype=regions.dtype, device=regions.device)
    return regions[:, None] == index[None, :, None, None]


def _mean_over_regions(x: Tensor, point_labels: Tensor) -> Tensor:
    """[n, K, M, h, w] → [n, M, h, w], over the regions that are there."""
    valid = (point_labels == _FOREGROUND).to(x.dtype)
    share = valid / valid.sum(dim=1, keepdim=True).clamp(min=1.0)
    mean: Tensor = (x * share[:, :, None, None, None]).sum(dim=1)
    return mean


def _neighbours(maps: Tensor) -> Tensor:
    """The 3×3 pixels around each one, row by row: [b, h, w] → [b, 9, h · w]; the edge repeats."""
    height, width = maps.shape[1:]
    maps = torch.cat([maps[:, :1], maps, maps[:, -1:]], dim=1)
    maps = torch.cat([maps[:, :, :1], maps, maps[:, :, -1:]], dim=2)
    rows = [maps[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return torch.stack(rows, dim=1).flatten(2)


def _normed_product(weight: Tensor, bias: Tensor, x: Tensor, norm: nn.Module) -> Tensor:
    """SAM's LayerNorm2d of ``weight @ x + bias``, for r pixels whose channels share an axis.

    Subtracting the mean is linear, so it is done to the weights. The mean of the squares of each
    pixel's c channels is a product with a constant matrix, in float32: SAM's own form squares in
    fp16, where TensorRT warns of the overflow, and a LayerNormalization over 4 channels takes ONNX
    Runtime's CPU provider four times as long.

    Args:
        weight, bias: float32 [r · c, i] and [r · c].
        x: [b, i, p].
        norm: over c channels.

    Returns:
        [b, r · c, p] in the type of ``x``.
    """
    assert isinstance(norm.weight, Tensor)
    assert isinstance(norm.bias, Tensor)
    assert isinstance(norm.eps, float)
    channels = len(norm.weight)
    pixels = len(weight) // channels
    same = torch.eye(pixels, device=x.device).repeat_interleave(channels, 1)  # [r, r · c]
    mean = same / channels
    centre = torch.eye(len(weight), device=x.device) - same.T @ mean
    centred = (centre @ weight).to(x.dtype) @ x + (centre @ bias).to(x.dtype)[:, None]
    centred = centred.float()
    spread = torch.rsqrt(product(mean, centred.square()) + norm.eps)
    normed = centred.unflatten(1, (pixels, channels)) * spread[:, :, None]
    scaled: Tensor = normed * norm.weight.float()[:, None] + norm.bias.float()[:, None]
    return scaled.flatten(1, 2).to(x.dtype)
