"""A small CLIP from captioned crops of the small world, by contrast (arXiv 2103.00020).

Two things differ from OpenAI's recipe, and both serve dense features. A caption has a place, as in
RegionCLIP (arXiv 2112.09106): each patch of what it is about chooses it among all texts of the
batch, by the cosine that ESC-Net reads (last block without attention); the class token is not used.
And crops of 64 px keep the scale and the positions they have in their scene, so that most of the
training costs a quarter; a second phase sees whole scenes. Beside the captions of a batch there are
wrong ones about other names of the training vocabulary, said in the same ways: without them colour
alone finds most captions, and shapes are hardly learned.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from open_clip.model import CLIP
from torch import Tensor, nn

from escnet.build import build_model
from escnet.clip import dense_features, encode_text, unit_norm
from escnet.config import EscNetConfig
from escnet.precision import product
from escnet.tokenizer import clip_tokenizer
from escnet.train.data import IGNORED
from escnet.train.loss import cell_shares
from escnet.train.segmentation import normalised
from escnet.train.task import ParameterGroup, Samples
from escnet.train.validate import Validation, unchecked
from escnet.weights import write_tensors
from escnet_runtime.console import Console
from escnet_runtime.world import CaptionedCrop, Wording, caption_crops, vocabulary

from .pool import Shuffled, draw

__all__ = ["ClipRates", "ClipTask", "CropPool", "save_clip"]

_WHOLE_REGION: Final = 4.0  # patches from which on a region has its full weight
_LENGTHS: Final = 3  # batches of texts
_WRONG: Final = 256  # texts of a batch about names that none of its captions is about
_LARGEST_SCALE: Final = math.log(100.0)  # CLIP's own limit


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipRates:
    """Learning rates: of Muon for ``matrices`` of blocks, of AdamW for the ``rest``.

    Attributes:
        weight_decay: of the matrices.
    """

    matrices: float
    rest: float
    weight_decay: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class CropPool:
    """What a phase of the training shows.

    Attributes:
        side: px a side of a crop; the whole scene if it is the model's image size.
        scenes: how many scenes crops are taken from.
        crops: of a scene.
    """

    side: int
    scenes: int
    crops: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Chanced:
    """A crop, and chance of its own: the first one's decides for a batch."""

    crop: CaptionedCrop
    chance: np.random.Generator


class ClipTask:
    """Trains ``clip`` on crops; see the module's docstring.

    Args:
        config: of the ESC-Net this CLIP is for.
        clip: open_clip's module, changed in place.
        pool: the crops.
        rates: learning rates.
        seed: of the order of the crops.
        processes: that draw the crops.
        validation: gives figures of a model with this CLIP, "miou" among them.
        console: for progress.
    """

    name = "CLIP"
    score = "miou"

    def __init__(
        self,
        config: EscNetConfig,
        clip: CLIP,
        pool: CropPool,
        *,
        rates: ClipRates,
        seed: int,
        processes: int,
        validation: Validation,
        console: Console,
    ) -> None:
        self.config, self._clip, self._rates = config, clip, rates
        self._validation = validation
        self.module: nn.Module = _Contrast(config, clip)
        self._tokenizer = clip_tokenizer(config.clip)
        size = config.clip.image_size
        make = partial(_crops_of, count=pool.crops, side=pool.side, size=size)
        drawn = draw(make, pool.scenes, processes=processes, console=console, title="draw crops")
        self._names = vocabulary("train")
        crops = Shuffled([crop for scene in drawn for crop in scene], seed)
        self.samples: Samples = _WithChance(crops, seed, size)

    @property
    def groups(self) -> Sequence[ParameterGroup]:
        """Muon for the matrices of the towers' blocks; vectors, embeddings and kernels by AdamW."""
        named = dict(self.module.named_parameters())
        blocks = {name: p for name, p in named.items() if "resblocks" in name and p.ndim == 2}
        rest = {name: p for name, p in named.items() if name not in blocks}
        return (
            ParameterGroup(
                name="matrices of blocks",
                parameters=blocks,
                rate=self._rates.matrices,
                weight_decay=self._rates.weight_decay,
                muon=True,
            ),
            ParameterGroup(name="rest", parameters=rest, rate=self._rates.rest, weight_decay=0.0),
        )

    @property
    def collate(self) -> Callable[[list[_Chanced]], dict[str, Tensor]]:
        """Crops → images uint8 [b, H, W, 3], corners in patches [b, 2], tokens of t texts, and
        labels int32 [b, H, W]: which text a pixel is of, or ``IGNORED``.
        """
        return self._collate

    def validate(self, check: Callable[[], None] = unchecked, /) -> Mapping[str, float]:
        """Of the plain correlation on held-out scenes: argmax of the cosines, up-sampled."""
        model = build_model(self.config)
        model.clip.load_state_dict(self._clip.state_dict())
        return self._validation(model.to(next(self._clip.parameters()).device), check)

    def save(self, path: Path, *, step: int) -> None:
        """See :func:`save_clip`."""
        save_clip(self._clip, path, step=step)

    def _collate(self, samples: list[_Chanced]) -> dict[str, Tensor]:
        crops, patch = [sample.crop for sample in samples], self.config.clip.patch_size
        corners = [[round(crop.top / patch), round(crop.left / patch)] for crop in crops]
        said = dict(self._said(samples[0].chance, crops))
        column = {name: index for index, name in enumerate(said)}
        texts = [wording.about(name) for name, wording in said.items()]
        labels = []
        for crop in crops:
            places = np.array([*(column[name] for name in crop.spoken), IGNORED], np.int32)
            labels.append(places[crop.regions])
        return {
            "images": torch.from_numpy(np.stack([crop.image for crop in crops])),
            "corners": torch.tensor(corners),
            "tokens": torch.from_numpy(self._tokenizer.encode(texts)),
            "labels": torch.from_numpy(np.stack(labels)),
        }

    def _said(
        self, chance: np.random.Generator, crops: Sequence[CaptionedCrop]
    ) -> Iterator[tuple[str, Wording]]:
        """Each name that the batch's captions are about, then others, in wordings of the batch."""
        pairs = [pair for crop in crops for pair in zip(crop.spoken, crop.wordings, strict=True)]
        spoken = dict(pairs)
        yield from spoken.items()
        others = [name for name in self._names if name not in spoken]
        for index in chance.choice(len(others), min(_WRONG, len(others)), replace=False):
            yield others[index], pairs[int(chance.integers(len(pairs)))][1]


class _WithChance:
    """The crops, every other one as a mirror shows it, with chance of their own."""

    def __init__(self, crops: Shuffled[CaptionedCrop], seed: int, size: int) -> None:
        self._crops, self._seed, self._size = crops, seed, size

    def __getitem__(self, index: int) -> _Chanced:
        chance = np.random.Generator(np.random.PCG64((self._seed, index)))
        crop = self._crops[index]
        if chance.random() < 0.5:
            crop = _mirrored(crop, self._size)
        return _Chanced(crop=crop, chance=chance)


def _mirrored(crop: CaptionedCrop, size: int) -> CaptionedCrop:
    """What it is in its scene of ``size`` px, seen in a mirror: no name tells left from right."""
    return replace(
        crop,
        image=crop.image[:, ::-1],
        regions=crop.regions[:, ::-1],
        left=size - crop.left - crop.image.shape[1],
    )


def save_clip(clip: nn.Module, path: Path, *, step: int) -> None:
    """open_clip's state dict, as :func:`escnet.weights.load_clip` reads it."""
    write_tensors(clip.state_dict(), path, {"step": str(step)})


class _Contrast(nn.Module):
    """A batch of captioned crops → its contrastive loss."""

    def __init__(self, config: EscNetConfig, clip: CLIP) -> None:
        super().__init__()
        self.config, self.clip = config, clip

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Losses of a batch as ``ClipTask.collate`` makes it."""
        clip: Any = self.clip
        image = normalised(self.config, batch["images"])
        side = image.shape[-1] // self.config.clip.patch_size
        positions = self._positions(batch["corners"], side)
        found = dense_features(clip.visual, image, self.config.clip.skip_layers, positions)
        patches, texts = unit_norm(found.projected), _by_length(clip, batch["tokens"])
        scale = clip.logit_scale.clamp(max=_LARGEST_SCALE).exp()
        cosines = product(patches.flatten(0, 1), texts.T).unflatten(0, patches.shape[:2])
        likely = torch.log_softmax(scale * cosines, dim=-1)
        # Large and small things count alike: a region's loss is the mean over its patches.
        shares = cell_shares(batch["labels"], len(texts), side).flatten(2).transpose(1, 2)
        area = shares.sum(1, keepdim=True)
        weight = (area / _WHOLE_REGION).clamp(max=1.0)
        each = shares / area.clamp(min=1e-6) * weight
        right = each.gather(2, likely.argmax(-1, keepdim=True)).sum()
        total = weight.sum().clamp(min=1e-6)
        return {"loss": -(each * likely).sum() / total, "accuracy": right / total, "scale": scale}

    def _positions(self, corners: Tensor, side: int) -> Tensor:
        """The positional embeddings of windows of side × side patches, [b, side² + 1, width]."""
        table: Tensor = self.clip.visual.positional_embedding
        grid = self.config.grid
        step = torch.arange(side, device=corners.device)
        rows, columns = corners[:, :1] + step, corners[:, 1:] + step
        index = 1 + rows[:, :, None] * grid + columns[:, None, :]
        return torch.cat([table[:1].expand(len(corners), 1, -1), table[index.flatten(1)]], dim=1)


def _by_length(clip: Any, tokens: Tensor) -> Tensor:
    """``encode_text`` with texts of like length together: a third less padding to compute."""
    lengths = (tokens > 0).sum(1)
    order = lengths.argsort(stable=True)
    parts = [
        encode_text(clip, tokens[some, : int(lengths[some].max())])
        for some in order.tensor_split(_LENGTHS)
        if len(some)
    ]
    return torch.cat(parts)[order.argsort()]


def _crops_of(seed: int, *, count: int, side: int, size: int) -> tuple[CaptionedCrop, ...]:
    return caption_crops(seed, count=count, side=side, size=size)
