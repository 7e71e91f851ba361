"""The texts of the categories that an export measures with, encoded by float32 torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from escnet.model import EscNet
from escnet_runtime.backends.base import Array
from escnet_runtime.tokenizer import Tokenizer
from escnet_runtime.vocabulary import TextPlan, plan_texts

from .parity import Sample
from .scenes import SceneSet

__all__ = ["TEXT_ENCODER", "Texts", "inputs_of", "texts_of"]

#: The only graph that runs once a vocabulary and not once an image.
TEXT_ENCODER: Final = "text_encoder"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Texts:
    """The categories' texts: tokens int32 [t, l] and float32 torch's embeddings [t, D]."""

    plan: TextPlan
    tokens: npt.NDArray[np.int32]
    embeddings: npt.NDArray[np.float32]


def texts_of(model: EscNet, tokenizer: Tokenizer, scenes: SceneSet) -> Texts:
    """The texts of the categories of ``scenes``, encoded by ``model`` in float32."""
    plan = plan_texts(scenes.categories, model.config.templates)
    tokens = tokenizer.encode(plan.prompts, cleaned=True)
    with torch.inference_mode():
        embeddings = model.encode_text(torch.from_numpy(tokens)).numpy()
    return Texts(plan=plan, tokens=tokens, embeddings=embeddings)


def inputs_of(graph: str, samples: Sequence[Sample], texts: Texts) -> list[Mapping[str, Array]]:
    """The inputs that float32 torch gave a graph on the images, one entry a run."""
    if graph == TEXT_ENCODER:
        return [{"tokens": texts.tokens}]
    return [call.inputs for sample in samples for call in sample.calls if call.graph == graph]
