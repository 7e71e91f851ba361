"""What is checked and what it is compared with: bundles, images, vocabularies, PyTorch."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from escnet_runtime.images import ImageArray
from escnet_runtime.segmenter import Segmenter
from escnet_runtime.vocabulary import Vocabulary

from ..footprint import generated_names
from .plan import CheckPlan

if TYPE_CHECKING:
    from escnet.model import EscNet

__all__ = ["export", "load_model", "made_up_images", "open_segmenter", "torch_call", "words"]


def made_up_images(size: tuple[int, int], count: int, seed: int = 0) -> list[ImageArray]:
    """uint8 [H,W,3]: areas of colour with grain, all different."""
    height, width = size
    rng = np.random.Generator(np.random.PCG64(seed))
    y, x = np.mgrid[:height, :width]
    found = []
    for _ in range(count):
        image = np.empty((height, width, 3))
        image[:] = rng.uniform(0, 255, 3)
        for _ in range(12):
            cy, cx = rng.uniform(0, height), rng.uniform(0, width)
            radius = rng.uniform(0.05, 0.35) * min(size)
            image[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = rng.uniform(0, 255, 3)
        image += rng.normal(0, 8, image.shape)
        found.append(image.clip(0, 255).astype(np.uint8))
    return found


def load_model(name: str) -> "tuple[EscNet, str, bool]":
    """A preset in float32: trained weights where they ship, else seeded ones; their description."""
    from escnet.build import build_model
    from escnet.presets import preset
    from escnet.weights import SHIPPED, load_checkpoint, shipped_checkpoint

    if name in SHIPPED:
        loaded = load_checkpoint(shipped_checkpoint(name))
        return loaded.model, loaded.weights, loaded.trained
    return build_model(preset(name)), "seeded random (seed 0)", False


def export(plan: CheckPlan, name: str, precision: str) -> Path:
    """Export a model's bundle, unless it is there; gated at few categories, to save time."""
    from escnet_export import export_bundle
    from escnet_runtime.manifest import Precision

    folder = plan.bundle(name, precision)
    if not folder.exists():
        model, weights, trained = load_model(name)
        export_bundle(
            model,
            folder,
            precision=Precision(precision),
            weights=weights,
            trained=trained,
            images=made_up_images(plan.size, 1),
            allow_parity_failure=True,
            check_categories=(2,),
        )
    return folder


def open_segmenter(bundle: Path, plan: CheckPlan, backend: str | None = None) -> Segmenter:
    """On the plan's backend, or another."""
    return Segmenter(bundle, backend or plan.backend, cache=Path(plan.bundles, "embeddings"))


def words(segmenter: Segmenter, categories: int) -> Vocabulary:
    """So many generated categories, encoded."""
    return segmenter.vocabulary(generated_names(categories))


def torch_call(
    model: "EscNet", *, half: bool, compiled: bool, device: str = "cuda"
) -> Callable[[ImageArray, npt.NDArray[np.float32]], npt.NDArray[np.uint8 | np.uint16]]:
    """The model as one would run it in PyTorch: (pixels, text embeddings) → labels [H,W].

    All categories at once; resize, normalisation, prompts, interpolation and argmax on the GPU.
    ``model`` is changed to the type it runs in.
    """
    import torch
    from torch.nn import functional

    config, kind = model.config, torch.float16 if half else torch.float32
    model = model.eval().requires_grad_(False).to(device=device, dtype=kind)
    side = config.clip.image_size
    mean = torch.tensor(config.image_mean, device=device)[:, None, None]
    std = torch.tensor(config.image_std, device=device)[:, None, None]

    def whole(pixels: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        image = pixels.permute(2, 0, 1)[None].float()
        image = functional.interpolate(image, (side, side), mode="bilinear", antialias=True)
        logits = model(((image / 255 - mean) / std).to(kind), text)
        size = (pixels.shape[0], pixels.shape[1])
        full = functional.interpolate(logits[None].to(kind), size, mode="bilinear")
        return full[0].argmax(dim=0)

    run = torch.compile(whole, dynamic=False) if compiled else whole
    texts: dict[int, torch.Tensor] = {}

    def call(
        pixels: ImageArray, text: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.uint8 | np.uint16]:
        if id(text) not in texts:
            texts.clear()
            texts[id(text)] = torch.tensor(text, device=device)
        narrow = torch.uint8 if len(text) <= 256 else torch.int16
        with torch.inference_mode():
            labels = run(torch.tensor(pixels, device=device), texts[id(text)])
            host: npt.NDArray[np.uint8 | np.uint16] = labels.to(narrow).cpu().numpy()
        return host

    return call
