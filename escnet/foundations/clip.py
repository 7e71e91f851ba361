"""A small CLIP from captioned crops of the small world, by contrast (arXiv 2103.00020).

Two things differ from OpenAI's recipe, and both serve dense features. A picture resembles a caption
as much as its best patches do: the soft maximum over the patches of the cosine that ESC-Net reads
(last block without attention), not the class token's; as FILIP (arXiv 2111.07783) on the side of
the image. And crops of 64 px keep the scale and the positions they have in their scene, so that
most of the training costs a quarter; a second phase sees whole scenes. Among the texts that a crop
chooses from are wrong ones that differ from its own in one word, as in NegCLIP (arXiv 2210.01936):
without them colour alone finds most captions of a batch, and shapes are hardly learned.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from escnet.build import build_model
from escnet.clip import dense_features, encode_text, unit_norm
from escnet.config import EscNetConfig
from escnet.model import EscNet
from escnet.precision import product
from escnet.tokenizer import build_tokenizer
from escnet.train.segmentation import normalised
from escnet.train.task import ParameterGroup
from escnet_runtime.atomic import atomic_file
from escnet_runtime.console import Console
from escnet_runtime.tokenizer import Tokenizer
from escnet_runtime.world import CaptionedCrop, caption_crops, vocabulary

from .pool import Shuffled, draw

__all__ = ["ClipRates", "ClipTask", "CropPool", "save_clip"]

_CROPS_OF_A_SCENE: Final = 4
_LENGTHS: Final = 3  # batches of texts
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
    """

    side: int
    scenes: int


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
        clip: nn.Module,
        pool: CropPool,
        *,
        rates: ClipRates,
        seed: int,
        processes: int,
        validation: Callable[[EscNet], Mapping[str, float]],
        console: Console,
    ) -> None:
        self.config, self._clip, self._rates = config, clip, rates
        self._validation = validation
        self.module: nn.Module = _Contrast(config, clip)
        context = config.clip.context_length
        self._tokenizer = Tokenizer(build_tokenizer(config.clip.vocab_size, context), context)
        whole = pool.side == config.clip.image_size
        make = partial(
            _crops_of,
            count=1 if whole else _CROPS_OF_A_SCENE,
            side=pool.side,
            size=config.clip.image_size,
        )
        drawn = draw(make, pool.scenes, processes=processes, console=console, title="draw crops")
        self._names = {name: index for index, name in enumerate(vocabulary("train"))}
        self.samples = Shuffled([crop for scene in drawn for crop in scene], seed)

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
    def collate(self) -> Callable[[list[CaptionedCrop]], dict[str, Tensor]]:
        """Crops → images uint8, corners in patches, tokens, whose they are, what is true.

        Of t texts the first are the captions, as many as have an owner; wrong ones follow.
        """
        return self._collate

    def validate(self) -> Mapping[str, float]:
        """Of the plain correlation on held-out scenes: argmax of the cosines, up-sampled."""
        model = build_model(self.config)
        model.clip.load_state_dict(self._clip.state_dict())
        return self._validation(model.to(next(self._clip.parameters()).device))

    def save(self, path: Path, *, step: int) -> None:
        """See :func:`save_clip`."""
        save_clip(self._clip, path, step=step)

    def _collate(self, crops: list[CaptionedCrop]) -> dict[str, Tensor]:
        patch = self.config.clip.patch_size
        corners = [[round(crop.top / patch), round(crop.left / patch)] for crop in crops]
        texts = [caption for crop in crops for caption in crop.captions]
        texts += [caption for crop in crops for caption in crop.wrong]
        seen = torch.zeros(len(crops), len(self._names), dtype=torch.bool)
        for row, crop in enumerate(crops):
            seen[row, [self._names[name] for name in crop.seen]] = True
        about = [name for crop in crops for name in crop.spoken]
        about += [name for crop in crops for name in crop.wrong_about]
        columns = torch.tensor([self._names[name] for name in about])
        return {
            "images": torch.from_numpy(np.stack([crop.image for crop in crops])),
            "corners": torch.tensor(corners),
            "tokens": torch.from_numpy(self._tokenizer.encode(texts)),
            "owner": torch.repeat_interleave(torch.tensor([len(crop.spoken) for crop in crops])),
            "true": seen[:, columns],
        }


def save_clip(clip: nn.Module, path: Path, *, step: int) -> None:
    """open_clip's state dict, as :func:`escnet.weights.load_clip` reads it."""
    state = {name: one.detach().cpu().contiguous() for name, one in clip.state_dict().items()}
    with atomic_file(path) as temporary:
        save_file(state, temporary, metadata={"step": str(step)})


class _Contrast(nn.Module):
    """A batch of captioned crops → its contrastive loss."""

    def __init__(self, config: EscNetConfig, clip: nn.Module) -> None:
        super().__init__()
        self.config, self.clip = config, clip

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Losses of a batch as ``ClipTask.collate`` makes it."""
        clip: Any = self.clip
        image = normalised(self.config, batch["images"])
        positions = self._positions(
            batch["corners"], image.shape[-1] // self.config.clip.patch_size
        )
        found = dense_features(clip.visual, image, self.config.clip.skip_layers, positions)
        patches, texts = unit_norm(found.projected), _by_length(clip, batch["tokens"])
        scale = clip.logit_scale.clamp(max=_LARGEST_SCALE).exp()
        cosines = product(patches.flatten(0, 1), texts.T).unflatten(0, patches.shape[:2])
        logits = torch.logsumexp(scale * cosines, dim=1)
        # A caption that is true of another crop as well is no wrong answer for it.
        owner = batch["owner"]
        every = torch.arange(len(owner), device=owner.device)
        others = batch["true"].clone()
        others[owner, every] = False
        to_image = logits.masked_fill(others, -1e4)[:, : len(owner)].T
        others = batch["true"][owner]
        others[every, every] = False
        to_text = logits[owner].masked_fill(others, -1e4)
        loss = (F.cross_entropy(to_image, owner) + F.cross_entropy(to_text, every)) / 2
        right = (to_text.argmax(1) == every).float().mean()
        return {"loss": loss, "accuracy": right, "scale": scale}

    def _positions(self, corners: Tensor, side: int) -> Tensor:
        """The positional embeddings of windows of side × side patches, [b, side² + 1, width]."""
        table: Tensor = self.clip.visual.positional_embedding  # type: ignore[union-attr, assignment]
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
