"""The model to measure: its bundle, its counterpart in PyTorch, and its operations."""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from escnet_runtime.bundle import Bundle
from escnet_runtime.contract import require_contract
from escnet_runtime.embedding_cache import default_cache_directory
from escnet_runtime.errors import BackendError
from escnet_runtime.images import ImageArray
from escnet_runtime.manifest import Precision

from ..models import require_checkpoint
from .plan import Form

if TYPE_CHECKING:
    from escnet.config import EscNetConfig

__all__ = ["Subject", "open_subject"]

#: Name of the folder in the user's cache folder.
_FOLDER: Final = "bench"


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """One model.

    Attributes:
        bundle: opened.
        torch_model: a preset or a checkpoint's absolute path; None if PyTorch cannot run this
            model.
        no_torch: why it cannot; empty if it can.
        same_weights: whether the model in PyTorch has the weights of the bundle.
        config: of the model in PyTorch.
        image_size: px a side of its image, if the bundle's is not the preset's.
    """

    bundle: Bundle
    torch_model: str | None
    no_torch: str
    same_weights: bool
    config: "EscNetConfig | None"
    image_size: int | None = None

    @property
    def weight_bytes(self) -> int:
        """Bytes of the graphs that an image runs through."""
        stages = self.bundle.manifest.stages
        return sum(stage.bytes for name, stage in stages.items() if name != "text_encoder")

    def gflop(self) -> Callable[[Form, int, int | None], float | None]:
        """(form, categories, chunk or None for all) → 10⁹ operations; None without PyTorch."""
        config = self.config
        if config is None:
            return lambda form, categories, chunk: None
        from ..gflop import gflop_rows

        @functools.cache
        def count(form: Form, categories: int, chunk: int | None) -> float | None:
            rows = gflop_rows(config, [categories], chunk=chunk or categories)
            wanted = "plain" if form == "plain" else "shipped"
            return next(row.gflop for row in rows if row.form == wanted)

        return count


def open_subject(
    *,
    preset: str | None,
    checkpoint: Path | None,
    bundle: Path | None,
    precision: Precision,
    images: Sequence[ImageArray],
) -> Subject:
    """Open a bundle, or export a preset's or a checkpoint's; one of the three is given.

    Raises:
        InputError: it cannot be used.
        BackendError: exporting needs PyTorch, which is not installed.
    """
    if bundle is not None:
        opened = Bundle.open(bundle)
        require_contract(opened.manifest)
        return _of_bundle(opened)
    if checkpoint is not None:
        require_checkpoint(checkpoint)
    try:
        from escnet.presets import preset as preset_of
        from escnet.weights import load_checkpoint

        from .exported import bundle_of
    except ModuleNotFoundError as error:
        raise BackendError(
            f"exporting a bundle needs {error.name}, which is not installed: install "
            "escnet-bench[torch], or measure a bundle: --bundle BUNDLE"
        ) from error
    if checkpoint is not None:
        config, model = load_checkpoint(checkpoint).model.config, str(checkpoint.resolve())
    else:
        assert preset is not None
        config, model = preset_of(preset), preset
    folder, _ = bundle_of(model, precision, default_cache_directory() / _FOLDER, images)
    return Subject(
        bundle=Bundle.open(folder),
        torch_model=model,
        no_torch="",
        same_weights=True,
        config=config,
    )


def _of_bundle(bundle: Bundle) -> Subject:
    """What PyTorch can run beside a bundle: the preset of that name, if its sizes are these.

    A preset's image may have another size, as ``escnet-export --image-size`` gives it.
    """
    name, size = bundle.manifest.model.name, bundle.manifest.model.image_size
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("escnet") is None:
        reason = "torch is not installed: install escnet-bench[torch]"
        return Subject(
            bundle=bundle, torch_model=None, no_torch=reason, same_weights=False, config=None
        )
    from escnet.presets import PRESETS

    config = PRESETS.get(name)
    if config is not None and size in config.image_sizes:
        config = config.at_size(size)
    reason = _difference(bundle, config)
    if reason:
        return Subject(
            bundle=bundle, torch_model=None, no_torch=reason, same_weights=False, config=None
        )
    return Subject(
        bundle=bundle,
        torch_model=name,
        no_torch="",
        same_weights=_weights(name, size) == bundle.manifest.model.weights,
        config=config,
        image_size=size,
    )


def _difference(bundle: Bundle, config: "EscNetConfig | None") -> str:
    """How a bundle's model differs from the preset of its name; empty if it does not."""
    model = bundle.manifest.model
    if config is None:
        return f"the bundle's model {model.name!r} is no preset: give its --checkpoint instead"
    got = (
        model.image_size,
        model.grid[0],
        model.embed_dim,
        model.hidden_dim,
        model.sam_dim,
        model.blocks,
    )
    expected = (
        config.clip.image_size,
        config.grid,
        config.clip.embed_dim,
        config.fusion.hidden_dim,
        config.sam.embed_dim,
        config.blocks,
    )
    if got == expected:
        return ""
    return (
        f"the bundle's model has the sizes {got}, the preset {model.name!r} {expected} (image, "
        "grid, embedding, hidden, SAM, blocks): give its --checkpoint instead"
    )


def _weights(name: str, image_size: int) -> str:
    """A description of the weights with which PyTorch would run a preset."""
    from ..subjects import load_model

    return load_model(name, image_size)[1]
