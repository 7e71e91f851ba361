"""A preset as a model: with its trained weights, or with those of a CLIP and a SAM."""

from pathlib import Path

from escnet.build import build_model
from escnet.config import EscNetConfig

from .checkpoint import LoadedCheckpoint, load_checkpoint
from .clip import load_clip
from .resize import resized
from .sam import load_sam
from .shipped import SHIPPED, shipped_checkpoint

__all__ = ["load_preset"]


def load_preset(
    config: EscNetConfig,
    *,
    clip: str | None = None,
    sam: Path | None = None,
    seed: int | None = None,
) -> LoadedCheckpoint:
    """A model of a preset's sizes, in evaluation mode, in float32 on the CPU.

    It has the trained weights that ship for this preset, if any do and no others are asked for.
    Otherwise what neither ``clip`` nor ``sam`` gives has seeded random weights.

    Args:
        config: a preset, at any of its image sizes.
        clip: weights of its CLIP; see :func:`load_clip`.
        sam: weights of its SAM blocks; see :func:`load_sam`.
        seed: of the random weights; 0 by default.

    Raises:
        WeightsError: there is no such file or tag, or it does not fit.
    """
    if config.name in SHIPPED and (clip, sam, seed) == (None, None, None):
        return resized(load_checkpoint(shipped_checkpoint(config.name)), config.clip.image_size)
    seed = seed or 0
    model = build_model(config, seed=seed)
    parts = [f"seeded random (seed {seed})"]
    if clip is not None:
        load_clip(model, clip)
        parts.append(f"CLIP from {Path(clip).name}")
    if sam is not None:
        load_sam(model, sam)
        parts.append(f"SAM from {sam.name}")
    return LoadedCheckpoint(model=model, trained=False, weights=", ".join(parts))
