"""One ESC block: SAM block, its result joined to the image features, vision-language fusion."""

from torch import Tensor, nn

from .fusion import ImageGuidance, ImageGuided, TextGuidance
from .sam import SamBlock

__all__ = ["BlockWithoutSam", "EscBlock"]


class _Refinement(nn.Module):
    """What follows the SAM block: the correlation refined by the image, then by all categories."""

    image_guidance: ImageGuidance
    text_guidance: TextGuidance

    def refine_image(
        self, embedding: Tensor, guidance: Tensor, text: Tensor, weight: Tensor
    ) -> ImageGuided:
        """``esc{i}_image``: embedding [n, h, w, E], guidance [1, G, h, w], text [n, D].

        Returns:
            embedding' [n, h, w, E] and, for weights float32 [g, group], in float32
            kv_sum [g, h·w, H, d, d] and k_sum [g, h·w, H, d].
        """
        refined = self.image_guidance(embedding, guidance)
        return ImageGuided(refined, *self.text_guidance.sums(refined, text, weight))

    def refine_text(
        self, embedding: Tensor, text: Tensor, scores: Tensor, kv_mean: Tensor, k_mean: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``esc{i}_text``: see :meth:`TextGuidance.forward`."""
        refined: tuple[Tensor, Tensor] = self.text_guidance(
            embedding, text, scores, kv_mean, k_mean
        )
        return refined

    def refine_plain(
        self, embedding: Tensor, guidance: Tensor, text: Tensor, scores: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Image and text guidance of all N categories in the plain form: the reference."""
        refined = self.image_guidance(embedding, guidance, plain=True)
        return self.text_guidance.forward_plain(refined, text, scores)


class EscBlock(_Refinement):
    """The four graphs of one block; the runtime calls them chunk by chunk and adds the sums up.

    Args:
        sam: prompts of every category → the sums of their enhanced features.
        merge: 1×1 convolution of the mean enhanced feature, added to the image features.
        guide: 1×1 convolution of the new image features → guidance of the Swin layers.
    """

    def __init__(
        self,
        *,
        sam: SamBlock,
        merge: nn.Conv2d,
        guide: nn.Conv2d,
        image_guidance: ImageGuidance,
        text_guidance: TextGuidance,
    ) -> None:
        super().__init__()
        self.sam, self.merge, self.guide = sam, merge, guide
        self.image_guidance, self.text_guidance = image_guidance, text_guidance

    def fuse(self, block_features: Tensor, enhanced_mean: Tensor) -> tuple[Tensor, Tensor]:
        """``esc{i}_fuse``: [1, C, h, w] and float32 [1, C, h, w] → the same, and [1, G, h, w].

        The paper is silent on how the categories' features become one: their mean, so that
        neither their number nor their order matters, a 1×1 convolution, and a residual.
        """
        features = block_features + self.merge(enhanced_mean.to(block_features.dtype))
        return features, self.guide(features)


class BlockWithoutSam(_Refinement):
    """The paper's ablation "without SAM block": the image features only guide the fusion.

    Args:
        guide: 1×1 convolution of the image features → guidance of the Swin layers.
    """

    def __init__(
        self, *, guide: nn.Conv2d, image_guidance: ImageGuidance, text_guidance: TextGuidance
    ) -> None:
        super().__init__()
        self.guide = guide
        self.image_guidance, self.text_guidance = image_guidance, text_guidance
