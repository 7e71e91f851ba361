"""mIoU and pixel accuracy of a model while it trains, as escnet-eval would measure them.

What comes before and after the model is the runtime's own code, so the figures are those that
``escnet-eval CHECKPOINT DATASET --window none`` gives, up to pixels whose best two categories tie
within float32's rounding. Categories come in chunks, as there, so a model that trains with a few
categories an image is validated with hundreds in little memory.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from escnet.chunks import logits_in_chunks
from escnet.model import EscNet
from escnet.precision import whole_float32
from escnet.tokenizer import clip_tokenizer
from escnet_runtime.confusion import ConfusionCounter, Labels
from escnet_runtime.dataset import LabelledImages
from escnet_runtime.errors import InputError
from escnet_runtime.images import ImageArray
from escnet_runtime.postprocess import UpsampleArgmax
from escnet_runtime.preprocess import preprocess
from escnet_runtime.vocabulary import Vocabulary, assemble, plan_texts

__all__ = [
    "Predict",
    "Validation",
    "correlation",
    "label_map",
    "unchecked",
    "validate",
    "vocabulary",
]

#: Model, normalised image [1, 3, S, S] and text [N, D] → scores of the categories [N, h, w].
Predict: TypeAlias = Callable[[EscNet, Tensor, Tensor], Tensor]
#: Model, and what to call before each image (see :meth:`.task.Task.validate`) → figures.
Validation: TypeAlias = Callable[[EscNet, Callable[[], None]], Mapping[str, float]]

_TEXT_BATCH = 64


def unchecked() -> None:
    """For a validation that nobody asks to stop."""


@torch.no_grad()
@whole_float32()
def validate(
    model: EscNet,
    images: LabelledImages,
    *,
    predict: Predict = logits_in_chunks,
    check: Callable[[], None] = unchecked,
    progress: Callable[[str], None] = lambda _: None,
    counted: Callable[[ConfusionCounter], None] = lambda _: None,
) -> Mapping[str, float]:
    """Segment images for all classes of their data set and compare.

    Args:
        model: in evaluation mode, in float32 (whole: no TF32), on any device.
        images: with labels.
        predict: what scores the categories; the model's logits by default.
        check: called before each image; what it raises ends the validation.
        progress: called after each image with its name.
        counted: called with the counts of all images.

    Returns:
        "miou" and "pixel_accuracy", fractions, and "miou_GROUP" of each group of classes that the
        data set tells apart, 0 if none of them occurs.

    Raises:
        InputError: a file cannot be used, or no pixel is labelled.
    """
    words = vocabulary(model, images.names)
    counter = ConfusionCounter(len(images.names))
    for sample in images:
        check()
        counter.add(label_map(model, sample.image, words, predict=predict), sample.labels)
        progress(sample.name)
    scores = counter.scores()
    if scores.miou is None or scores.pixel_accuracy is None:
        raise InputError("no pixel of the images for validation is labelled")
    counted(counter)
    groups = images.groups.items()
    return {
        "miou": scores.miou,
        "pixel_accuracy": scores.pixel_accuracy,
        **{f"miou_{name}": counter.scores(classes).miou or 0.0 for name, classes in groups},
    }


@torch.no_grad()
def vocabulary(model: EscNet, names: tuple[str, ...]) -> Vocabulary:
    """Embeddings of categories by the runtime's rules: templates, synonyms, duplicates."""
    config = model.config
    tokenizer = clip_tokenizer(config.clip)
    plan = plan_texts(names, config.templates)
    device = next(model.parameters()).device
    embeddings = []
    for start in range(0, len(plan.prompts), _TEXT_BATCH):
        texts = list(plan.prompts[start : start + _TEXT_BATCH])
        tokens = torch.from_numpy(tokenizer.encode(texts, cleaned=True)).to(device)
        embeddings.append(model.encode_text(tokens).cpu().numpy())
    return assemble(plan, np.concatenate(embeddings), model="in training")


@torch.no_grad()
def label_map(
    model: EscNet, image: ImageArray, words: Vocabulary, *, predict: Predict = logits_in_chunks
) -> Labels:
    """Indices into ``words.names`` of an image uint8 [H, W, 3], uint8 or uint16 [H, W]."""
    device = next(model.parameters()).device
    pixels = torch.from_numpy(preprocess(image, model.config.preprocessing)).to(device)
    text = torch.tensor(words.embeddings, device=device)
    scores: NDArray[np.float32] = predict(model, pixels, text).float().cpu().numpy()
    height, width = image.shape[:2]
    reduced = UpsampleArgmax(height, width, (scores.shape[1], scores.shape[2]), len(scores))
    reduced.add(0, scores)
    return words.labels(reduced.result()[0])


def correlation(model: EscNet, image: Tensor, text: Tensor) -> Tensor:
    """For ``predict``: the map that the first block's prompts are made of, [N, h, w]."""
    return model.correlate(model.encode_image(image).features, text)[0]
