"""CLIP's own correlation: how it is measured, and how ESC-Net's training begins with it.

Before the blocks are worth their time, the map that they start from can be taught for a twentieth
of it: cross-entropy of C alone, through the parts of CLIP that ESC-Net's training moves (its
attention layers). No block is computed. An image is asked for the categories of all images of its
batch.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from escnet.model import EscNet
from escnet.precision import product
from escnet.train.categories import CategorySampler, CategorySampling
from escnet.train.data import IGNORED
from escnet.train.groups import parameter_groups
from escnet.train.loss import cell_shares, correlation_loss
from escnet.train.segmentation import TextEncoding, WithCategories, collated, normalised
from escnet.train.task import ParameterGroup, Samples

from .clip import save_clip

__all__ = ["CorrelationTask", "correlation"]


def correlation(model: EscNet, image: Tensor, text: Tensor) -> Tensor:
    """The map that the first block's prompts are made of, [N, h, w]: for ``validate``."""
    return model.correlate(model.encode_image(image).features, text)[0]


class CorrelationTask:
    """Trains CLIP's attention layers for a correct C; see the module's docstring.

    Args:
        model: changed in place.
        samples: :class:`TrainingSample` by number, of the model's image size.
        names: what labels are indices into.
        categories: which of them each image brings into its batch.
        seed: of the choice of categories.
        rate: learning rate.
        validation: gives figures, "miou" among them.
    """

    name = "correlation"
    score = "miou"

    def __init__(
        self,
        model: EscNet,
        samples: Samples,
        names: Sequence[str],
        *,
        categories: CategorySampling,
        seed: int,
        rate: float,
        weight_decay: float,
        validation: Callable[[EscNet], Mapping[str, float]],
    ) -> None:
        self.model = model
        self.samples: Samples = WithCategories(samples, CategorySampler(names, categories), seed)
        self.module: nn.Module = _Correlation(model, TextEncoding(model, names))
        every = parameter_groups(model, small_rate=rate, large_rate=rate, weight_decay=weight_decay)
        self.groups: Sequence[ParameterGroup] = [
            group for group in every if group.name.startswith("attention of CLIP")
        ]
        self.collate: Callable[[list[Any]], dict[str, Any]] = collated
        self._validation = validation

    def validate(self) -> Mapping[str, float]:
        """The figures of ``validation``."""
        return self._validation(self.model)

    def save(self, path: Path, *, step: int) -> None:
        """CLIP's state dict, all that has changed."""
        save_clip(self.model.clip, path, step=step)


class _Correlation(nn.Module):
    """A batch of scenes → the loss of C."""

    def __init__(self, model: EscNet, text: TextEncoding) -> None:
        super().__init__()
        self.model, self._text = model, text

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Means over the labelled area of each image."""
        model, every = self.model, torch.cat(batch["categories"]).unique()
        text = self._text.encode(model, every)
        found = model.encode_image(normalised(model.config, batch["images"])).features
        scores = product(text, found.flatten(2)).unflatten(2, found.shape[2:])
        losses, right = [], []
        for one, labels, classes in zip(scores, batch["labels"], batch["categories"], strict=True):
            place = torch.cat([torch.searchsorted(every, classes), labels.new_tensor([IGNORED])])
            shares = cell_shares(place[labels], len(every), model.config.grid)
            losses.append(correlation_loss(one, shares, model.config.ppg.temperature))
            most = one.argmax(0, keepdim=True)
            right.append(shares.gather(0, most).sum() / shares.sum().clamp(min=1e-6))
        return {"loss": torch.stack(losses).mean(), "accuracy": torch.stack(right).mean()}
