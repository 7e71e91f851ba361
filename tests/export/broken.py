"""Models made to break: the same function in float32, but one block is out of a type's reach."""

import copy
from collections.abc import Callable, Sequence
from typing import Final

import torch
from open_clip.transformer import ResidualAttentionBlock
from segment_anything.modeling.transformer import TwoWayAttentionBlock
from torch import Tensor, nn

from escnet.model import EscNet
from escnet.swin import GuidedSwinLayer
from escnet_runtime.manifest import Precision

__all__ = ["BREAKS", "OUTLIERS", "broken", "hostile"]

# Powers of two, so that float32 computes the same to the last bit: what is scaled up stays below
# 65,504 as a weight, and what it gives does not.
_OF_VALUES: Final = 2.0**17
_OF_NORMS: Final = 2.0**15


def _scale(factor: float, *tensors: Tensor | None) -> None:
    with torch.no_grad():
        for tensor in tensors:
            assert tensor is not None
            tensor.mul_(factor)


def _encoder_block(model: EscNet) -> None:
    """The values of an attention layer, and the projection behind them."""
    attention = model.clip.visual.transformer.resblocks[1].attn
    assert isinstance(attention, nn.MultiheadAttention)
    width = attention.embed_dim
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    assert weight is not None
    _scale(_OF_VALUES, weight[2 * width :], bias[2 * width :])
    _scale(1 / _OF_VALUES, attention.out_proj.weight)


def _sam(model: EscNet) -> None:
    """The values with which the image attends to the prompts."""
    layer = model.esc_blocks[1].sam.transformer.layers[0]
    assert isinstance(layer, TwoWayAttentionBlock)
    attention = layer.cross_attn_image_to_token
    _scale(_OF_VALUES, attention.v_proj.weight, attention.v_proj.bias)
    _scale(1 / _OF_VALUES, attention.out_proj.weight)


def _fusion_image(model: EscNet) -> None:
    """The values of a Swin layer."""
    layer = model.esc_blocks[0].image_guidance.layers[1]
    assert isinstance(layer, GuidedSwinLayer)
    _scale(_OF_VALUES, layer.value.weight, layer.value.bias)
    _scale(1 / _OF_VALUES, layer.output.weight)


def _fusion_text(model: EscNet) -> None:
    """The norm before an MLP."""
    guidance = model.esc_blocks[1].text_guidance
    _scale(_OF_NORMS, guidance.norm2.weight, guidance.norm2.bias)
    _scale(1 / _OF_NORMS, guidance.mlp.up.weight)


def _decoder(model: EscNet) -> None:
    """The norm before the head: a ReLU lies between, which scaling does not change."""
    norm = model.decoder.second.norm2
    _scale(_OF_NORMS, norm.weight, norm.bias)
    _scale(1 / _OF_NORMS, model.decoder.head.weight)


#: By the block that breaks.
BREAKS: Final[dict[str, Callable[[EscNet], None]]] = {
    "image_encoder.block1": _encoder_block,
    "esc1_sam": _sam,
    "esc0_image": _fusion_image,
    "esc1_text": _fusion_text,
    "decoder": _decoder,
}


def broken(model: EscNet, block: str) -> EscNet:
    """A copy of ``model`` whose ``block`` overflows in float16."""
    changed = copy.deepcopy(model)
    BREAKS[block](changed)
    return changed


#: One channel of eight is scaled by the first, the others by the second, so that one scale for all
#: holds neither. fp8 holds numbers 2 ** 17 apart, and float16 has to hold them as well.
_OUTLIERS: Final = {Precision.INT8: (2.0**9, 1.0), Precision.FP8: (2.0**10, 2.0**-9)}
_EVERY: Final = 8


def _outliers(precision: Precision, *, written: Sequence[Tensor], read: Sequence[Tensor]) -> None:
    """Scale channels where they are written (axis 0), and back where they are read (axis 1)."""
    outlier, other = _OUTLIERS[precision]
    for tensor in written:
        _scale(other, tensor)
        _scale(outlier / other, tensor[::_EVERY])
    for tensor in read:
        _scale(1 / other, tensor)
        _scale(other / outlier, tensor[:, ::_EVERY])


def _encoder_outliers(model: EscNet, precision: Precision) -> None:
    block = model.clip.visual.transformer.resblocks[1]
    assert isinstance(block, ResidualAttentionBlock)
    attention, up = block.attn, block.mlp.c_fc
    assert isinstance(attention, nn.MultiheadAttention)
    assert isinstance(up, nn.Linear)
    assert attention.in_proj_weight is not None
    first, second = [block.ln_1.weight, block.ln_1.bias], [block.ln_2.weight, block.ln_2.bias]
    _outliers(precision, written=first, read=[attention.in_proj_weight])
    _outliers(precision, written=second, read=[up.weight])


def _fusion_outliers(model: EscNet, precision: Precision) -> None:
    for layer in model.esc_blocks[0].image_guidance.layers:
        assert isinstance(layer, GuidedSwinLayer)
        own = layer.norm1.weight.shape[0]  # behind them, query and key read the guidance
        queries = [layer.query.weight[:, :own], layer.key.weight[:, :own], layer.value.weight]
        first, second = layer.norm1, layer.norm2
        _outliers(precision, written=[first.weight, first.bias], read=queries)
        _outliers(precision, written=[second.weight, second.bias], read=[layer.mlp.up.weight])


def _decoder_outliers(model: EscNet, precision: Precision) -> None:
    stage = model.decoder.first
    norm = stage.norm1
    _outliers(precision, written=[norm.weight, norm.bias], read=[stage.second.weight])


#: By the block that eight bits destroy.
OUTLIERS: Final[dict[str, Callable[[EscNet, Precision], None]]] = {
    "image_encoder.block1": _encoder_outliers,
    "esc0_image": _fusion_outliers,
    "decoder": _decoder_outliers,
}


def hostile(model: EscNet, block: str, precision: Precision) -> EscNet:
    """A copy of ``model`` whose ``block`` has channels too far apart for int8, or for fp8."""
    changed = copy.deepcopy(model)
    OUTLIERS[block](changed, precision)
    return changed
