"""A small SAM from class-agnostic masks of the small world, by prompts (arXiv 2304.02643).

segment_anything's own modules in small: image encoder, prompt encoder, mask decoder. As in SAM's
recipe, the loss is 20 · focal + dice of the best of three masks for a single ambiguous point, of
the one mask otherwise, and the squared error of the predicted IoU. Prompts are those an ESC block
will make: up to five foreground points, a coarse mask, or both. The image encoder is then dropped.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam
from segment_anything.modeling.transformer import TwoWayTransformer
from torch import Tensor, nn

from escnet.config import EscNetConfig
from escnet.train.groups import by_dimension
from escnet.train.task import ParameterGroup
from escnet.train.validate import unchecked
from escnet.weights import write_tensors
from escnet_runtime.world import prompt_sample

__all__ = ["SamTask", "build_sam"]

# Of the small image encoder, which only serves to train the rest.
_WIDTH: Final = 96
_DEPTH: Final = 4
_HEADS: Final = 3
_MOST_MASKS: Final = 6  # of an image in one forward pass
_POINTS: Final = 5
_FIRST_VALIDATION: Final = 1 << 40  # scenes from here on are not trained on
_VALIDATION_SCENES: Final = 64


def build_sam(config: EscNetConfig) -> Sam:
    """A SAM whose prompt encoder and transformer have the sizes of the configuration's blocks."""
    size, sizes = config.clip.image_size, config.sam
    grid = (config.grid, config.grid)
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=size,
            patch_size=config.clip.patch_size,
            embed_dim=_WIDTH,
            depth=_DEPTH,
            num_heads=_HEADS,
            out_chans=sizes.embed_dim,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            global_attn_indexes=tuple(range(_DEPTH)),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=sizes.embed_dim,
            image_embedding_size=grid,
            input_image_size=(size, size),
            mask_in_chans=sizes.mask_channels,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=sizes.embed_dim,
            transformer=TwoWayTransformer(
                depth=sizes.depth,
                embedding_dim=sizes.embed_dim,
                num_heads=sizes.heads,
                mlp_dim=sizes.mlp_dim,
            ),
            iou_head_hidden_dim=sizes.embed_dim,
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Prompted:
    """An image with prompts: image uint8 [H, W, 3]; masks float32 [k, H, W]; points [k, p, 2] or
    None; coarse float32 [k, H, W] from 0 to 1 or None.
    """

    image: Tensor
    masks: Tensor
    points: Tensor | None
    coarse: Tensor | None

    def to(self, device: torch.device) -> "_Prompted":
        """The same on a device."""
        return _Prompted(
            image=self.image.to(device),
            masks=self.masks.to(device),
            points=None if self.points is None else self.points.to(device),
            coarse=None if self.coarse is None else self.coarse.to(device),
        )


class SamTask:
    """Trains ``sam`` on prompts; see the module's docstring.

    Args:
        config: of the ESC-Net this SAM is for.
        sam: from :func:`build_sam`, changed in place.
        rate: learning rate.
        seed: of the scenes.
    """

    name = "SAM"
    score = "iou"

    def __init__(self, config: EscNetConfig, sam: Sam, *, rate: float, seed: int) -> None:
        self._sam, self._rate = sam, rate
        self._size = config.clip.image_size
        self.module: nn.Module = _Prompting(sam)
        self.samples = _Scenes(self._size, first=seed << 36)

    @property
    def groups(self) -> Sequence[ParameterGroup]:
        """Everything that is read; box corners and background points are never asked for."""
        unread = tuple(f"sam.prompt_encoder.point_embeddings.{kind}." for kind in (0, 2, 3))
        named = {
            name: one for name, one in self.module.named_parameters() if not name.startswith(unread)
        }
        return by_dimension("SAM", named, rate=self._rate, weight_decay=0.05)

    @property
    def collate(self) -> Callable[[list[_Prompted]], list[_Prompted]]:
        """Images keep their own numbers of masks: a list."""
        return list

    def validate(self, check: Callable[[], None] = unchecked, /) -> Mapping[str, float]:
        """Mean IoU over the masks of scenes never trained on, by kind of prompt.

        ``iou`` is the mean of the two that an ESC block combines: five points, and a coarse mask.
        """
        device = self._sam.pixel_mean.device
        found: dict[str, list[float]] = {"point": [], "points": [], "mask": []}
        for number in range(_VALIDATION_SCENES):
            check()
            for kind, values in found.items():
                sample = _prompted(_FIRST_VALIDATION + number, self._size, kind).to(device)
                logits, quality = _ask(self._sam, _encoded(self._sam, [sample])[0], sample)
                best = logits[torch.arange(len(logits)), quality.argmax(1)]
                values.extend(_iou(best > 0, _at(sample.masks, best) > 0.5).tolist())
        means = {f"iou_{kind}": float(np.mean(values)) for kind, values in found.items()}
        return {"iou": (means["iou_points"] + means["iou_mask"]) / 2, **means}

    def save(self, path: Path, *, step: int) -> None:
        """SAM's state dict, as :func:`escnet.weights.load_sam` reads it."""
        write_tensors(self._sam.state_dict(), path, {"step": str(step)})


class _Scenes:
    """Scenes with prompts of a kind that is drawn for each."""

    def __init__(self, size: int, first: int) -> None:
        self._size, self._first = size, first

    def __getitem__(self, index: int) -> _Prompted:
        rng = np.random.Generator(np.random.PCG64((self._first, index)))
        kind = rng.choice(["point", "points", "mask", "both"], p=[0.3, 0.25, 0.2, 0.25])
        return _prompted(self._first + index, self._size, str(kind))


def _prompted(seed: int, size: int, kind: str) -> _Prompted:
    """Single points ask for objects, several for all that has a name, as ESC-Net's prompts do."""
    sample = prompt_sample(
        seed,
        size=size,
        region="object" if kind == "point" else "category",
        points=1 if kind == "point" else _POINTS,
        coarse=kind in ("mask", "both"),
    )
    keep = slice(0, _MOST_MASKS)
    coarse = sample.coarse
    return _Prompted(
        image=torch.from_numpy(sample.image),
        masks=torch.from_numpy(sample.masks[keep]).float(),
        # SAM adds half a pixel itself.
        points=None if kind == "mask" else torch.from_numpy(sample.points[keep]) - 0.5,
        coarse=None if coarse is None else torch.from_numpy(coarse[keep]),
    )


def _encoded(sam: Sam, batch: Sequence[_Prompted]) -> Tensor:
    """Image embeddings of a batch, [b, C, h, w]."""
    images = torch.stack([sample.image for sample in batch]).float().permute(0, 3, 1, 2)
    out: Tensor = sam.image_encoder((images - sam.pixel_mean) / sam.pixel_std)
    return out


class _Prompting(nn.Module):
    """A batch of prompted images → SAM's loss."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam

    def forward(self, batch: Sequence[_Prompted]) -> dict[str, Tensor]:
        """Means over all masks of the batch."""
        batch = [sample.to(self.sam.pixel_mean.device) for sample in batch]
        embeddings = _encoded(self.sam, batch)
        losses, ious = [], []
        for embedding, sample in zip(embeddings, batch, strict=True):
            logits, quality = _ask(self.sam, embedding, sample)
            loss, iou = _losses(logits, quality, _at(sample.masks, logits))
            losses.append(loss)
            ious.append(iou)
        return {"loss": torch.cat(losses).mean(), "iou": torch.cat(ious).mean()}


def _ask(sam: Sam, embedding: Tensor, sample: _Prompted) -> tuple[Tensor, Tensor]:
    """Mask logits [k, m, 4h, 4w] and predicted IoU [k, m]; m is 3 for a single point, else 1."""
    points = sample.points
    labelled = (
        None if points is None else (points, torch.ones(points.shape[:2], device=points.device))
    )
    logits = None
    if sample.coarse is not None:
        logits = F.interpolate(
            20.0 * sample.coarse[:, None] - 10.0,
            size=sam.prompt_encoder.mask_input_size,
            mode="bilinear",
        )
    sparse, dense = sam.prompt_encoder(labelled, None, logits)
    single = points is not None and points.shape[1] == 1 and logits is None
    masks, quality = sam.mask_decoder(
        image_embeddings=embedding[None],
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=single,
    )
    return masks, quality


def _at(masks: Tensor, like: Tensor) -> Tensor:
    """Masks [k, H, W] at the size of logits [k, ..., h, w], as shares: [k, h, w]."""
    return F.interpolate(masks[:, None], size=like.shape[-2:], mode="area")[:, 0]


def _losses(logits: Tensor, quality: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and IoU of each of k masks, [k]: SAM's appendix A."""
    target = masks[:, None].expand_as(logits)
    crossed = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p = logits.sigmoid()
    right = p * target + (1 - p) * (1 - target)
    weight = 0.25 * target + 0.75 * (1 - target)
    focal = (weight * (1 - right) ** 2 * crossed).flatten(2).mean(2)
    both, total = (p * target).flatten(2).sum(2), (p + target).flatten(2).sum(2)
    dice = 1 - (2 * both + 1) / (total + 1)
    iou = _iou(logits > 0, target > 0.5)
    mask_loss = 20 * focal + dice
    best = mask_loss.argmin(1, keepdim=True)
    loss = mask_loss.gather(1, best) + (quality - iou).square().gather(1, best)
    return loss[:, 0], iou.gather(1, best)[:, 0]


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union over the last two axes."""
    both, either = (a & b).flatten(-2).sum(-1), (a | b).flatten(-2).sum(-1)
    return both / either.clamp(min=1)
