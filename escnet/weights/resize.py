"""The same weights for an image of another size."""

import dataclasses

from open_clip.model import resize_pos_embed

from escnet.build import build_model

from .checkpoint import LoadedCheckpoint
from .state import copy_into

__all__ = ["resized"]


def resized(loaded: LoadedCheckpoint, image_size: int) -> LoadedCheckpoint:
    """A model with the weights of ``loaded`` for an image of ``image_size`` px a side.

    CLIP's positional embeddings are resized bicubically, as open_clip does between the sizes of
    its models; every other weight is as it was. A larger image shows smaller objects and costs
    more: attention of CLIP's image tower is quadratic in the number of tokens, the rest linear.

    Returns:
        A model of its own, or ``loaded`` itself where it has that size.

    Raises:
        InputError: the size is none of :attr:`escnet.config.EscNetConfig.image_sizes`.
    """
    before = loaded.model.config
    if image_size == before.clip.image_size:
        return loaded
    model = build_model(before.at_size(image_size))
    tensors = loaded.model.state_dict()
    clip = {name: tensors[f"clip.{name}"] for name in loaded.model.clip.state_dict()}
    resize_pos_embed(clip, model.clip)
    tensors |= {f"clip.{name}": value for name, value in clip.items()}
    copy_into((target, tensors[name]) for name, target in model.state_dict().items())
    weights = f"{loaded.weights}; positions resized from {before.clip.image_size} px"
    return dataclasses.replace(loaded, model=model, weights=weights)
