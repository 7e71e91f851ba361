"""A small world with words: procedural scenes whose every pixel has a name.

It trains the default model and evaluates bundles on the device, so it lies in the runtime, which
loads it only when asked. ``docs/world.md`` is the definition.
"""

from .captions import CaptionedCrop, Wording, caption_crops
from .data import ShapesDataset, dataset
from .prompts import PromptSample, prompt_sample
from .scene import Object, Scene, render_scene
from .words import WORLD_VERSION, class_groups, evaluation_vocabulary, vocabulary

__all__ = [
    "WORLD_VERSION",
    "CaptionedCrop",
    "Object",
    "PromptSample",
    "Scene",
    "ShapesDataset",
    "Wording",
    "caption_crops",
    "class_groups",
    "dataset",
    "evaluation_vocabulary",
    "prompt_sample",
    "render_scene",
    "vocabulary",
]
