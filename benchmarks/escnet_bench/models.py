"""The model a command was given: a folder is a bundle, a file a checkpoint."""

import argparse
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from escnet_runtime.commands.options import add_backend_option, add_chunk_option
from escnet_runtime.errors import BackendError, InputError
from escnet_runtime.segmenter import Segmenter

__all__ = ["CHECKPOINT_SUFFIX", "add_model_options", "open_model", "require_checkpoint"]

CHECKPOINT_SUFFIX: Final = ".safetensors"


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """What a command asks about the model it runs on a dataset: categories, backend, chunk."""
    parser.add_argument(
        "--classes-file",
        metavar="FILE",
        type=Path,
        help="names to ask the model for, in the order of the dataset's classes (default: the "
        "dataset's own names)",
    )
    add_backend_option(parser, torch=True)
    add_chunk_option(parser)


def require_checkpoint(path: Path) -> None:
    """Refuse a path that is no checkpoint, before torch is imported, which takes seconds.

    Raises:
        InputError: there is no such file.
    """
    if not path.is_file():
        got = f"{path} is a folder" if path.is_dir() else f"there is no checkpoint {path}"
        raise InputError(f"{got}; expected a file of escnet-train, NAME{CHECKPOINT_SUFFIX}")


def open_model(
    path: Path, backend: str, *, chunk: int | None = None, image_size: int | None = None
) -> AbstractContextManager[Segmenter]:
    """A Segmenter of a bundle, which needs no torch, or of a checkpoint, which torch runs.

    Args:
        path: the bundle's folder, or a ``.safetensors`` of this project.
        backend: one of the runtime's for a bundle; "torch" for a checkpoint; "auto" for either.
        chunk: categories at a time; by default as :class:`Segmenter` chooses.
        image_size: px a side of the image that a checkpoint's model sees; its own by default.

    Raises:
        InputError: there is no such model, or the backend does not run its kind.
        BackendError: the backend, or torch for a checkpoint, is not installed.
    """
    if path.is_dir():
        if backend == "torch":
            raise InputError(f"{path} is a bundle: torch runs checkpoints ({CHECKPOINT_SUFFIX})")
        if image_size is not None:
            raise InputError(
                f"{path} is a bundle, and the image size of a bundle is fixed: export another one "
                f"with escnet-export --image-size {image_size}, or evaluate the checkpoint"
            )
        return Segmenter(path, backend, chunk=chunk)
    if path.suffix != CHECKPOINT_SUFFIX or not path.is_file():
        missing = "" if path.exists() else ": there is no such file or folder"
        raise InputError(
            f"{path} is neither a bundle (a folder with bundle.json) nor a checkpoint (a file "
            f"NAME{CHECKPOINT_SUFFIX}){missing}"
        )
    if backend not in ("auto", "torch"):
        raise InputError(
            f"{path} is a checkpoint, which torch runs; backend {backend!r} needs a bundle: make "
            "one with escnet-export"
        )
    try:
        from .torch_checkpoint import checkpoint_segmenter
    except ModuleNotFoundError as error:
        raise BackendError(
            f"running a checkpoint needs {error.name}, which is not installed: install "
            "escnet-bench[torch], or take a bundle"
        ) from error
    return checkpoint_segmenter(path, chunk=chunk, image_size=image_size)
