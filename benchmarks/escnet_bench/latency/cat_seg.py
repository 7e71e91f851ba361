"""CAT-Seg (arXiv 2303.11797) in its authors' own code: a peer to compare times with.

Their code is read from a checkout that the user names; none of it is here. Two of its modules are
loaded, the CLIP and the aggregator, which do not need detectron2. Weights are random, because no
time depends on them, so labels mean nothing. What connects the two with each other, with the pixels
and with the labels follows their ``CATSeg.forward`` and ``CATSegHead.forward``, without the sliding
window.
"""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from escnet.config import EscNetConfig
from escnet_runtime.errors import InputError
from escnet_runtime.images import ImageArray

from .checkout import AGGREGATOR, CLIP
from .torch_runs import labels_on_host

__all__ = ["CatSeg"]

#: CLIP's (width, patch) → side of the images that it was trained on, and the layers whose outputs
#: guide the decoder (``CATSeg.__init__``).
_KINDS: Final = {(768, 16): (224, (3, 7)), (1024, 14): (336, (7, 15))}
#: Sizes of the aggregator, the same in ``configs/vitb_384.yaml`` and ``configs/vitl_336.yaml``.
_SIZES: Final[dict[str, Any]] = {
    "text_guidance_proj_dim": 128,
    "appearance_guidance_proj_dim": 128,
    "decoder_dims": (64, 32),
    "decoder_guidance_dims": (256, 128),
    "decoder_guidance_proj_dims": (32, 16),
    "num_layers": 2,
    "nheads": 4,
    "hidden_dim": 128,
    "pooling_size": (2, 2),
    "feature_resolution": (24, 24),
    "window_size": 12,
    "attention_type": "linear",
}
_HEAD_WIDTH: Final = 64  # of CLIP's attention
_Labels = npt.NDArray[np.uint8 | np.uint16]
_Floats = npt.NDArray[np.float32]


class CatSeg:
    """(pixels uint8 [H,W,3], text embeddings float32 [N,D]) → labels [H,W] on the host.

    Args:
        checkout: see :func:`escnet_bench.latency.checkout.require_checkout`.
        config: of the ESC-Net to compare with; CAT-Seg gets a CLIP of the same size.
        device: where to run.

    Raises:
        InputError: CAT-Seg has no configuration of that size, or the checkout is not as expected.
    """

    stages = None

    def __init__(self, checkout: Path, config: EscNetConfig, device: torch.device) -> None:
        clip = config.clip
        kind = _KINDS.get((clip.vision_width, clip.patch_size))
        if kind is None:
            raise InputError(
                f"CAT-Seg has no CLIP of width {clip.vision_width} with patches of "
                f"{clip.patch_size} px; it has {sorted(_KINDS)}"
            )
        trained_side, layers = kind
        self._grid: int = _SIZES["feature_resolution"][0]
        self._side = self._grid * clip.patch_size
        self._kept: list[Tensor] = []
        made = _modules(checkout)
        visual = made[CLIP].VisualTransformer(
            input_resolution=trained_side,
            patch_size=clip.patch_size,
            width=clip.vision_width,
            layers=clip.vision_layers,
            heads=clip.vision_width // _HEAD_WIDTH,
            output_dim=clip.embed_dim,
            prompt_depth=0,
            prompt_length=0,
        )
        for layer in layers:
            visual.transformer.resblocks[layer].register_forward_hook(self._keep)
        ups = [
            nn.ConvTranspose2d(clip.vision_width, width, factor, factor)
            for width, factor in zip(_SIZES["decoder_guidance_dims"], (2, 4), strict=True)
        ]
        aggregator = made[AGGREGATOR].Aggregator(
            **_SIZES,
            text_guidance_dim=clip.embed_dim,
            appearance_guidance_dim=clip.embed_dim,
            prompt_channel=1,
        )
        self._parts = nn.ModuleList([visual, aggregator, *ups])
        self._parts.eval().requires_grad_(False).to(device)
        self._mean = torch.tensor(config.image_mean, device=device)[:, None, None]
        self._std = torch.tensor(config.image_std, device=device)[:, None, None]
        self._text: tuple[_Floats, Tensor] | None = None

    def __call__(self, pixels: ImageArray, text: _Floats) -> _Labels:
        """Labels, uint8 up to 256 categories, else uint16."""
        device = self._mean.device
        if self._text is None or self._text[0] is not text:
            self._text = text, torch.tensor(text, device=device)[None, :, None]
        with torch.inference_mode():
            labels = self._labels(torch.tensor(pixels, device=device), self._text[1])
            return labels_on_host(labels, len(text))

    def _keep(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self._kept.append(output)

    def _labels(self, pixels: Tensor, text: Tensor) -> Tensor:
        visual, aggregator, *ups = self._parts
        image = (pixels.permute(2, 0, 1)[None].float() / 255 - self._mean) / self._std
        side = (self._side, self._side)
        image = functional.interpolate(image, side, mode="bilinear", align_corners=False)
        self._kept.clear()
        features = self._maps(visual(image, dense=True))
        kept = [self._maps(one.transpose(0, 1)) for one in self._kept]
        # The later layer is upsampled to the larger map, and comes last.
        guidance = [features, *(up(one) for up, one in zip(ups, kept, strict=True))]
        logits = aggregator(features, text, guidance)
        size = (pixels.shape[0], pixels.shape[1])
        full = functional.interpolate(logits.sigmoid(), size, mode="bilinear", align_corners=False)
        labels: Tensor = full[0].argmax(dim=0)
        return labels

    def _maps(self, tokens: Tensor) -> Tensor:
        """Tokens [1, 1 + h·w, C] → maps [1, C, h, w], without the class token."""
        maps: Tensor = tokens[:, 1:].transpose(1, 2).unflatten(2, (self._grid, self._grid))
        return maps


def _modules(checkout: Path) -> dict[str, ModuleType]:
    """The two modules, each alone: their package imports detectron2."""
    found = {}
    for name in (AGGREGATOR, CLIP):
        spec = importlib.util.spec_from_file_location(f"cat_seg_{Path(name).stem}", checkout / name)
        assert spec is not None
        assert spec.loader is not None
        found[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(found[name])
        except ModuleNotFoundError as error:
            raise InputError(
                f"CAT-Seg's {name} needs {error.name}, which is not installed: pip install einops "
                "timm"
            ) from error
    return found
