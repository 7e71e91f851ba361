"""SAM's weights, from Meta's files or MobileSAM's, into every ESC block."""

from pathlib import Path
from typing import Final

from torch import Tensor

from escnet.config import EscNetConfig
from escnet.model import EscNet

from .files import read_tensors
from .state import WeightsError, copy_into, fitted

__all__ = ["load_sam"]

# SAM's names, and where they stand in an ESC block's SamBlock.
_PARTS = {"prompt_encoder.": "prompt_encoder.", "mask_decoder.transformer.": "transformer."}
# What SAM has and ESC-Net does not use: its image encoder, and what turns features into masks.
_UNUSED = (
    "image_encoder.",
    "mask_decoder.iou_token.",
    "mask_decoder.iou_prediction_head.",
    "mask_decoder.mask_tokens.",
    "mask_decoder.output_upscaling.",
    "mask_decoder.output_hypernetworks_mlps.",
)
_METAS_DIM: Final = 256  # embed_dim of every SAM of Meta's


def load_sam(model: EscNet, path: Path) -> None:
    """Copy SAM's prompt encoder and two-way transformer into each ESC block.

    Args:
        model: changed in place, or not at all.
        path: ``sam_vit_b_*.pth``, ``mobile_sam.pt`` or the like; the larger SAMs have the same
            decoder. The image encoder in it is not used.

    Raises:
        WeightsError: the file cannot be read, a tensor does not fit, or the model has no SAM block.
    """
    if not model.esc_blocks:
        raise WeightsError(
            f"{path} was given to a model that has no SAM block: {len(model.blocks)} blocks, "
            f"sam.in_blocks is {model.config.sam.in_blocks}"
        )
    tensors = {
        name: value for name, value in read_tensors(path).items() if not name.startswith(_UNUSED)
    }
    blocks = [block.sam.state_dict() for block in model.esc_blocks]
    values = fitted(tensors, _in_sams_names(blocks[0]), str(path), _advice(model.config))
    targets = [_in_sams_names(block) for block in blocks]
    copy_into((target[name], value) for target in targets for name, value in values.items())


def _advice(config: EscNetConfig) -> str:
    dim = config.sam.embed_dim
    expected = (
        f" Expected a SAM in Meta's layout, of the sizes of {config.name!r} (embed_dim {dim})"
    )
    if dim != _METAS_DIM:
        return f"{expected}; Meta's files have {_METAS_DIM}, for the larger presets."
    return (
        f"{expected}: sam_vit_b_01ec64.pth, mobile_sam.pt or the like; SAM-HQ and SAM 2 have "
        "decoders of their own."
    )


def _in_sams_names(block: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        theirs + name.removeprefix(ours): value
        for name, value in block.items()
        for theirs, ours in _PARTS.items()
        if name.startswith(ours)
    }
