"""``escnet-bench parity``: a bundle on a labelled folder, against float32 PyTorch and the truth."""

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rich.table import Table

from escnet_runtime.bundle import Bundle
from escnet_runtime.commands.options import add_backend_option, add_chunk_option
from escnet_runtime.console import Console
from escnet_runtime.errors import BackendError, InputError
from escnet_runtime.labelled import SHAPES, dataset_name, open_labelled
from escnet_runtime.segmenter import Segmenter
from escnet_runtime.vocabulary import read_classes_file

from .conditions import Conditions, device_of
from .models import require_checkpoint
from .parity import METHOD, ParityRow, Reference, measure_parity
from .results import Document, result_document

__all__ = ["add_parity_options", "parity"]

_DATASET: Final = "shapes:heldout"
_SCENES: Final = 60  # default for built-in sets, which have no end
_STAGE_IMAGES: Final = 4
_LOG: Final = logging.getLogger("escnet_bench")


def add_parity_options(parser: argparse.ArgumentParser) -> None:
    """Add what ``escnet-bench parity`` takes, besides the common options and ``--output``."""
    add = parser.add_argument
    add("--bundle", type=Path, required=True, metavar="BUNDLE", help="the bundle to compare")
    add(
        "--dataset",
        default=_DATASET,
        metavar="DATASET",
        help=f"a dataset folder, or shapes:heldout (default: {_DATASET})",
    )
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="the checkpoint that the bundle was exported from, for PyTorch (default: the weights "
        "that ship, if the bundle was made from them)",
    )
    weights.add_argument(
        "--preset", metavar="NAME", help="the preset, if the bundle was exported from one"
    )
    add(
        "--limit",
        type=int,
        metavar="N",
        help=f"use only the first N images (default: all; {_SCENES} scenes of {SHAPES}...)",
    )
    add(
        "--stage-images",
        type=int,
        default=_STAGE_IMAGES,
        metavar="N",
        help="images on which stages are compared too; each takes as long as another image "
        f"(default: {_STAGE_IMAGES})",
    )
    add_backend_option(parser)
    add_chunk_option(parser)
    add(
        "--classes-file",
        type=Path,
        metavar="FILE",
        help="names to ask the model for, in the order of the dataset's classes (default: the "
        "dataset's own names)",
    )


def parity(arguments: argparse.Namespace, console: Console) -> Document:
    """Measure; returns the result document.

    Raises:
        InputError: an option, the dataset or the checkpoint cannot be used.
        BundleError: the bundle cannot be used.
        BackendError: the backend, or PyTorch for weights that were named, is not installed.
    """
    for option, least in (("limit", 1), ("stage_images", 0), ("chunk", 1)):
        value = getattr(arguments, option)
        if value is not None and value < least:
            name = option.replace("_", "-")
            raise InputError(f"--{name} is {value}, expected at least {least}")
    limit = arguments.limit
    if limit is None and arguments.dataset.startswith(SHAPES):
        limit = _SCENES
    dataset = open_labelled(arguments.dataset, scenes=limit)
    path = arguments.classes_file
    categories = None if path is None else read_classes_file(path)
    bundle = Bundle.open(arguments.bundle)
    total = min(len(dataset), limit or len(dataset))
    with (
        Segmenter(bundle, arguments.backend, chunk=arguments.chunk, cache=None) as segmenter,
        _reference(arguments, segmenter) as (reference, note),
        console.progress("parity", total) as advance,
    ):
        conditions = Conditions.now(METHOD, bundle, device=device_of(segmenter))
        row = measure_parity(
            segmenter,
            dataset,
            name=dataset_name(arguments.dataset),
            reference=reference,
            categories=categories,
            limit=limit,
            stage_images=arguments.stage_images,
            step=advance,
        )
    document = {**result_document("parity", conditions.finished(), [row]), "note": note}
    console.print(*_summary(row, note))
    return document


@contextmanager
def _reference(
    arguments: argparse.Namespace, segmenter: Segmenter
) -> Iterator[tuple[Reference | None, str | None]]:
    """PyTorch with the bundle's weights, or None and the reason why there is none."""
    asked = arguments.checkpoint or arguments.preset
    try:
        from .parity_torch import TorchReference, Weights, shipped_weights
    except ModuleNotFoundError as error:
        if asked:
            raise BackendError(
                f"comparing with a checkpoint needs {error.name}, which is not installed: install "
                "escnet-bench[torch], or leave --checkpoint and --preset out"
            ) from error
        yield None, _said(f"PyTorch is not here ({error.name} is not installed)")
        return
    manifest = segmenter.bundle.manifest
    weights: Weights | None
    if arguments.checkpoint is not None:
        require_checkpoint(arguments.checkpoint)
        weights = Weights.of_checkpoint(arguments.checkpoint)
    elif arguments.preset is not None:
        weights = Weights.of_preset(arguments.preset, trained=manifest.model.trained)
    else:
        weights = shipped_weights(manifest)
    if weights is None:
        yield (
            None,
            _said(
                f"the bundle's weights ({manifest.model.weights}) are not those that ship, and no "
                "--checkpoint or --preset was named"
            ),
        )
        return
    with TorchReference.opened(weights, segmenter) as reference:
        yield reference, None


def _said(why: str) -> str:
    """A note on why figures are missing, which is also logged because it is easily overlooked."""
    note = f"{why}: compared with the true labels and with the bundle's golden run alone"
    _LOG.warning("%s", note)
    return note


def _summary(row: ParityRow, note: str | None) -> list[Table | str]:
    """For people."""
    figures = Table(
        title=f"{row.model} {row.precision} on {row.backend}: {row.images} images of "
        f"{row.dataset}, {row.categories} categories",
        title_justify="left",
    )
    for name in ("", "bundle", "float32 PyTorch"):
        figures.add_column(name, justify="left" if not name else "right")
    figures.add_row("mIoU", _percent(row.miou), _percent(row.reference_miou))
    accuracy = (_percent(row.pixel_accuracy), _percent(row.reference_pixel_accuracy))
    figures.add_row("pixels that are right", *accuracy)
    parts: list[Table | str] = [figures]
    if row.pixel_agreement is not None and row.prompt_flips and row.prompts:
        flips = [
            f"block {block}: {flipped} of {prompts}"
            for block, (flipped, prompts) in enumerate(
                zip(row.prompt_flips, row.prompts, strict=True)
            )
        ]
        parts.append(f"equal labels {row.pixel_agreement:.3%}; prompts flipped: {', '.join(flips)}")
    parts.append(_stages(row))
    if row.golden.failure:
        parts.append(f"the golden run failed: {row.golden.failure}")
    if note:
        parts.append(f"note: {note}")
    return parts


def _stages(row: ParityRow) -> Table:
    table = Table(title="Stages against float32 PyTorch", title_justify="left")
    for name in ("stage", "relative L2", "cosine", "in the golden run"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    own = row.stages or {}
    for name in dict.fromkeys([*own, *row.golden.stages]):
        error, golden = own.get(name), row.golden.stages.get(name)
        table.add_row(
            name,
            "" if error is None else f"{error.relative_l2:.1e}",
            "" if error is None else f"{error.cosine:.6f}",
            "" if golden is None else f"{golden:.1e}",
        )
    return table


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"
