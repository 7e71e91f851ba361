"""Training of an ESC-Net: cross-entropy over the categories at every labelled pixel.

Where asked for, the correlation maps that make the prompts have a cross-entropy of their own.

The prompt generator's decisions (threshold, k-means, the choice of points) pass no gradient; the
probabilities of the mask prompts do. Images of one size are encoded as a batch; what follows is
written for one image, whose categories are a batch of their own, and ``torch.vmap`` makes one pass
of those images that have equally many: on a GPU a pass is bound by the number of its kernels.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from escnet.config import EscNetConfig
from escnet.model import EscNet, ImageFeatures
from escnet.weights import save_checkpoint, view_at

from .categories import CategorySampler, CategorySampling
from .data import IGNORED, TrainingSample
from .groups import Rates, parameter_groups
from .loss import LossWeights, cell_shares, correlation_loss
from .task import ParameterGroup, Samples
from .text import TextEncoding
from .validate import Validation, unchecked

__all__ = ["SegmentationTask", "normalised"]


class SegmentationTask:
    """Trains an ESC-Net on labelled images.

    Args:
        model: changed in place.
        samples: :class:`TrainingSample` by number, of any of the model's sizes.
        names: what labels are indices into; synonyms separated by ", ".
        rates: how fast.
        categories: which of the names an image is trained with.
        seed: of the choice of categories.
        checkpoint_activations: see :meth:`EscNet.segment`.
        loss: weights of further losses; none by default.
        validation: gives figures, "miou" among them; None validates nothing.
        weights: where the weights come from, in a sentence that the checkpoint carries.
    """

    name = "ESC-Net"

    def __init__(
        self,
        model: EscNet,
        samples: Samples,
        names: Sequence[str],
        *,
        rates: Rates,
        categories: CategorySampling,
        seed: int = 0,
        checkpoint_activations: bool = False,
        loss: LossWeights | None = None,
        validation: Validation | None = None,
        weights: str,
    ) -> None:
        self.model = model
        loss = loss or LossWeights()
        self.module: nn.Module = _Segmentation(
            model, TextEncoding(model, names), loss, checkpoint=checkpoint_activations
        )
        self.groups: Sequence[ParameterGroup] = parameter_groups(
            model, rates, scores_are_taught=loss.correlation > 0
        )
        self.samples: Samples = _WithCategories(samples, CategorySampler(names, categories), seed)
        self.collate: Callable[[list[Any]], dict[str, Any]] = _collated
        self.score = None if validation is None else "miou"
        self._validation, self._weights = validation, weights

    def validate(self, check: Callable[[], None] = unchecked, /) -> Mapping[str, float]:
        """The figures of ``validation``."""
        return {} if self._validation is None else self._validation(self.model, check)

    def save(self, path: Path, *, step: int) -> None:
        """A checkpoint of the model."""
        weights = f"{self._weights}, step {step}"
        save_checkpoint(self.model, path, trained=True, weights=weights)


class _Segmented(NamedTuple):
    """Logits [b, n, 4h, 4w] of b images, and the maps [b, n, h, w] that entered and left blocks."""

    logits: Tensor
    scores: list[Tensor]


class _Part(NamedTuple):
    """The images of a batch that have one size.

    ``model`` is that of their size, ``images`` are their numbers in the batch, ``encoded`` is in
    the order of these.
    """

    model: EscNet
    images: list[int]
    encoded: ImageFeatures


class _Segmentation(nn.Module):
    """A batch → its loss and pixel accuracy.

    Args:
        model: its parameters are the module's; images of another size than its own are seen by a
            view of it.
        text: embeds the classes.
        weights: of the losses.
        checkpoint: see :meth:`EscNet.segment`.
    """

    def __init__(
        self, model: EscNet, text: TextEncoding, weights: LossWeights, *, checkpoint: bool
    ) -> None:
        super().__init__()
        self.model, self.checkpoint = model, checkpoint
        self._text, self._weights = text, weights
        self._views: dict[int, EscNet] = {}  # in no nn.Module's sight: their parameters are model's

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Means over all labelled pixels of the batch, of whatever size its images are."""
        parts = [self._encoded(batch["images"], some) for some in _equally_large(batch["images"])]
        classes = batch["categories"]
        every = torch.cat(classes).unique()
        embeddings = self._text.encode(self.model, every)
        loss, right, count = [], [], []
        correlation: list[Tensor] = []
        together = ((one, some) for one in parts for some in _alike(one.images, classes))
        for part, some in together:
            wanted = torch.stack([classes[index] for index in some])
            labels = torch.stack([batch["labels"][index] for index in some])
            found = self._segmented(part, some, embeddings[torch.searchsorted(every, wanted)])
            logits = F.interpolate(
                found.logits, size=labels.shape[1:], mode="bilinear", align_corners=False
            )
            loss.append(F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum"))
            if self._weights.correlation and len(found.scores) > 1:
                correlation.append(self._correlation(found.scores[:-1], labels))
            right.append((logits.argmax(1) == labels).sum())
            count.append((labels != IGNORED).sum())
        pixels = torch.stack(count).sum().clamp(min=1)
        total = torch.stack(loss).sum() / pixels
        figures = {"accuracy": torch.stack(right).sum() / pixels}
        if correlation:
            figures["correlation"] = torch.cat(correlation).mean()
            total = total + self._weights.correlation * figures["correlation"]
        return {"loss": total, **figures}

    def _encoded(self, images: Sequence[Tensor], some: list[int]) -> _Part:
        """Those of the images that ``some`` counts, all of one size."""
        pixels = torch.stack([images[index] for index in some])
        model = self._at_size(pixels.shape[1])
        return _Part(model, some, model.encode_image(normalised(model.config, pixels)))

    def _at_size(self, size: int) -> EscNet:
        if size == self.model.config.clip.image_size:
            return self.model
        if size not in self._views:
            self._views[size] = view_at(self.model, size)
        return self._views[size]

    def _segmented(self, part: _Part, some: Sequence[int], text: Tensor) -> _Segmented:
        """Those images of a part that ``some`` counts, all at once, for embeddings [b, n, D]."""
        places = [part.images.index(index) for index in some]
        # torch.vmap excludes checkpoints, and mixed precision too: it leaves the bias of a
        # convolution in float32 (torch 2.11 and 2.15).
        mixed = torch.is_autocast_enabled(text.device.type)
        alone = self.checkpoint or mixed or len(some) == 1
        if alone or not _vmap_takes_the_model(text.device.type):
            traces = [
                part.model.segment(part.encoded.of(place), one, checkpoint=self.checkpoint)
                for place, one in zip(places, text, strict=True)
            ]
            maps = zip(*(trace.scores for trace in traces), strict=True)
            return _Segmented(
                torch.stack([trace.logits for trace in traces]), [torch.stack(one) for one in maps]
            )

        def single(features: Sequence[Tensor], text: Tensor) -> tuple[Tensor, list[Tensor]]:
            trace = part.model.segment(ImageFeatures(*(one[None] for one in features)), text)
            return trace.logits, trace.scores

        return _Segmented(*torch.vmap(single)([one[places] for one in part.encoded], text))

    def _correlation(self, scores: Sequence[Tensor], labels: Tensor) -> Tensor:
        """The mean loss of maps [b, n, h, w] of images, [b]."""
        shares = cell_shares(labels, scores[0].shape[1], scores[0].shape[2])
        temperature = self.model.config.ppg.temperature
        each = [correlation_loss(one, shares, temperature) for one in scores]
        return torch.stack(each).mean(0)


@functools.cache
def _vmap_takes_the_model(device: str) -> bool:
    """Torch 2.9 and older refuse in it the norms of maps whose channels are last in memory."""
    try:
        norm = torch.func.vmap(lambda maps: F.group_norm(maps.permute(0, 3, 1, 2), 1))
        norm(torch.zeros(1, 2, 2, 2, 2, device=device))
    except RuntimeError:
        return False
    return True


def _equally_large(images: Sequence[Tensor]) -> list[list[int]]:
    """The numbers of the images [S, S, 3], those of a size together."""
    return _grouped(range(len(images)), lambda index: len(images[index]))


def _alike(images: Sequence[int], classes: Sequence[Tensor]) -> list[list[int]]:
    """Those images in groups with equally many categories, which are worked on as one."""
    return _grouped(images, lambda index: len(classes[index]))


def _grouped(images: Iterable[int], key: Callable[[int], int]) -> list[list[int]]:
    """Images in groups of one key, in the order in which the keys come first."""
    groups: dict[int, list[int]] = {}
    for index in images:
        groups.setdefault(key(index), []).append(index)
    return list(groups.values())


def normalised(config: EscNetConfig, images: Tensor) -> Tensor:
    """uint8 [b, H, W, 3] → float32 [b, 3, H, W] as the image encoder expects it."""
    mean = torch.tensor(config.image_mean, device=images.device)
    std = torch.tensor(config.image_std, device=images.device)
    return ((images.float() / 255.0 - mean) / std).permute(0, 3, 1, 2)


class _WithCategories:
    """Samples with the categories they are trained with; labels index those."""

    def __init__(self, samples: Samples, sampler: CategorySampler, seed: int) -> None:
        self._samples, self._sampler, self._seed = samples, sampler, seed

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample: TrainingSample = self._samples[index]
        labelled = sample.labels[sample.labels != IGNORED]
        present, counts = np.unique(labelled, return_counts=True)
        present = present[np.argsort(-counts, kind="stable")]
        rng = np.random.Generator(np.random.PCG64((self._seed, index)))
        categories = self._sampler.draw(rng, present, index)
        lookup = np.full(self._sampler.count + 1, IGNORED)  # the last one stands for IGNORED
        lookup[categories] = np.arange(len(categories))
        return {
            "image": torch.from_numpy(sample.image),
            "labels": torch.from_numpy(lookup[sample.labels]),
            "categories": torch.from_numpy(categories),
        }


def _collated(samples: list[dict[str, Tensor]]) -> dict[str, Any]:
    """Samples → a batch; images keep their own sizes and numbers of categories."""
    return {
        "images": [sample["image"] for sample in samples],
        "labels": [sample["labels"] for sample in samples],
        "categories": [sample["categories"] for sample in samples],
    }
