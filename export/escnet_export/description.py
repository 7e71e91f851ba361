"""The part of a manifest that describes the model, independent of what runs its graphs."""

from escnet.chunks import CHUNK
from escnet.config import EscNetConfig
from escnet_runtime.groups import GROUP
from escnet_runtime.manifest import Constants, ModelInfo, Postprocessing

__all__ = ["constants_of", "model_info"]


def model_info(config: EscNetConfig, *, weights: str, trained: bool) -> ModelInfo:
    """Names and sizes of a model; ``weights`` says where its weights come from, for people."""
    return ModelInfo(
        name=config.name,
        trained=trained,
        weights=weights,
        image_size=config.clip.image_size,
        grid=(config.grid, config.grid),
        logits=(config.logits, config.logits),
        embed_dim=config.clip.embed_dim,
        hidden_dim=config.fusion.hidden_dim,
        sam_dim=config.sam.embed_dim,
        blocks=config.blocks,
    )


def constants_of(config: EscNetConfig) -> Constants:
    """Constants of what the runtime does before, between and after the graphs."""
    return Constants(
        ppg=config.ppg,
        preprocessing=config.preprocessing,
        postprocessing=Postprocessing(resize="bilinear", align_corners=False, confidence="softmax"),
        templates=config.templates,
        chunk=CHUNK,
        group=GROUP,
    )
