"""Exports bundles of presets and checkpoints once, and keeps them in the user's cache folder."""

import glob
import hashlib
import importlib.metadata
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import escnet
import escnet_export
import escnet_runtime
from escnet.weights import load_checkpoint
from escnet_export import export_bundle
from escnet_runtime.bundle import sha256_file
from escnet_runtime.images import ImageArray
from escnet_runtime.manifest import Precision

from ..subjects import load_model

__all__ = ["bundle_of", "source_key"]

#: Libraries on whose versions the content of a bundle depends.
_WRITERS: Final = ("onnx", "onnxscript", "open_clip_torch", "segment-anything", "torch")
#: Age at which outdated bundles of a model are deleted: each is as large as its weights.
_KEPT_SECONDS: Final = 24 * 3600.0


def bundle_of(
    model: str, precision: Precision, cache: Path, images: Sequence[ImageArray]
) -> tuple[Path, bool]:
    """The bundle of a preset or a checkpoint; exported unless it is in ``cache``.

    The export makes few checks and ignores the budget, because the benchmark itself compares the
    bundle with PyTorch.

    Args:
        model: a preset's name, or the absolute path of a checkpoint, whatever it ends in: a link
            may lead to a file without an ending, as in the cache of huggingface_hub.
        precision: of its graphs.
        cache: where bundles are kept.
        images: for the parity that the export measures.

    Returns:
        Its folder, and whether it was exported just now.

    Raises:
        InputError: there is no such preset, or the checkpoint cannot be used.
    """
    checkpoint = Path(model) if Path(model).is_absolute() else None
    name = model if checkpoint is None else checkpoint.stem
    key = source_key(precision.value, model if checkpoint is None else sha256_file(checkpoint))
    folder = cache / f"{name}-{precision}-{key}"
    if (folder / "bundle.json").is_file():
        return folder, False
    if checkpoint is None:
        network, weights, trained = load_model(model)
    else:
        loaded = load_checkpoint(checkpoint)
        network, weights, trained = loaded.model, loaded.weights, loaded.trained
    export_bundle(
        network,
        folder,
        precision=precision,
        weights=weights,
        trained=trained,
        images=images,
        allow_parity_failure=True,
        check_categories=(2,),
    )
    _forget(cache, f"{name}-{precision}-", folder)
    return folder, True


def source_key(*words: str) -> str:
    """A key that changes with ``words``, our sources and weights, and versions of libraries."""
    digest = hashlib.sha256("\0".join(words).encode())
    for library in _WRITERS:
        digest.update(f"{library} {importlib.metadata.version(library)}\0".encode())
    for package in (escnet, escnet_export, escnet_runtime):
        assert package.__file__ is not None
        root = Path(package.__file__).parent
        for path in sorted([*root.rglob("*.py"), *root.rglob("*.safetensors")]):
            digest.update(f"{path.relative_to(root)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _forget(cache: Path, prefix: str, kept: Path) -> None:
    """Delete outdated bundles; recent ones, which may be in use, are left for a day."""
    for folder in cache.glob(f"{glob.escape(prefix)}*"):
        if folder != kept and _is_old(folder) and (folder / "bundle.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)


def _is_old(folder: Path) -> bool:
    try:
        return time.time() - folder.stat().st_mtime > _KEPT_SECONDS
    except FileNotFoundError:  # another benchmark has just deleted it
        return False
