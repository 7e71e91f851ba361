"""The same weights for an image of another size."""

import dataclasses

from open_clip.model import resize_pos_embed

from escnet.build import build_model
from escnet.model import EscNet

from .checkpoint import LoadedCheckpoint
from .state import copy_into

__all__ = ["resized", "view_at"]

_POSITIONS = "visual.positional_embedding"


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
    _resize_positions(model, loaded.model)
    tensors = loaded.model.state_dict()
    copy_into(
        (target, tensors[name])
        for name, target in model.state_dict().items()
        if name != f"clip.{_POSITIONS}"
    )
    weights = f"{loaded.weights}; positions resized from {before.clip.image_size} px"
    return dataclasses.replace(loaded, model=model, weights=weights)


def view_at(model: EscNet, image_size: int) -> EscNet:
    """``model`` at another size: a module whose weights are those of ``model`` themselves.

    What trains one of them trains the other. Only CLIP's positions are its own, frozen: those of
    ``model`` at this moment, resized as :func:`resized` does.

    Raises:
        InputError: the size is none of :attr:`escnet.config.EscNetConfig.image_sizes`.
    """
    device = next(model.parameters()).device
    view = build_model(model.config.at_size(image_size)).to(device)
    _resize_positions(view, model)
    view.requires_grad_(False)
    # Parameters, and of the buffers those that are weights: SAM's random frequencies.
    for name in model.state_dict().keys() - {f"clip.{_POSITIONS}"}:
        owner, _, leaf = name.rpartition(".")
        setattr(view.get_submodule(owner), leaf, getattr(model.get_submodule(owner), leaf))
    return view.train(model.training)


def _resize_positions(target: EscNet, source: EscNet) -> None:
    """Copy CLIP's positional embeddings, resized to those of ``target``."""
    clip = {name: value.detach() for name, value in source.clip.state_dict().items()}
    resize_pos_embed(clip, target.clip)
    copy_into([(target.clip.get_parameter(_POSITIONS), clip[_POSITIONS])])
