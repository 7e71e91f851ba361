"""``escnet-bench gallery``: draws sheets of a dataset's images, with a page that shows them."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from escnet_runtime.atomic import atomic_directory
from escnet_runtime.confusion import ConfusionCounter
from escnet_runtime.console import Console, printable
from escnet_runtime.dataset import LabelledImages
from escnet_runtime.errors import InputError
from escnet_runtime.labelled import dataset_name, open_labelled
from escnet_runtime.segmenter import Segmenter
from escnet_runtime.vocabulary import read_classes_file

from ..conditions import Conditions
from ..evaluate import check_categories
from ..models import CHECKPOINT_SUFFIX, add_model_options, open_model
from .pages import GalleryModel, figures, page, sheet_caption, sheet_entry, sheet_file
from .sheet import draw_sheet
from .trace import choose, trace_image

__all__ = ["add_gallery_options", "gallery"]

_FIGURES: Final = "gallery.json"
_PAGE: Final = "index.md"
_IMAGES: Final = 8
_CATEGORIES: Final = 4
_METHOD: Final = "images at their own size, each looked at once as a whole (no sliding window)"


def add_gallery_options(parser: argparse.ArgumentParser) -> None:
    """Add what ``escnet-bench gallery`` takes, besides the common options."""
    add = parser.add_argument
    kinds = f"a {CHECKPOINT_SUFFIX} file (needs torch) or a folder (does not)"
    add("model", metavar="CHECKPOINT|BUNDLE", type=Path, help=kinds)
    add("dataset", metavar="DATASET", help="a dataset folder, or shapes:heldout")
    add(
        "--output",
        metavar="FOLDER",
        type=Path,
        required=True,
        help=f"folder for the sheets, {_PAGE} and {_FIGURES}; an older gallery there is replaced",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--limit",
        metavar="N",
        type=int,
        default=_IMAGES,
        help=f"use only the first N images (default: {_IMAGES})",
    )
    which.add_argument("--images", metavar="NAME", nargs="+", help="these images")
    add(
        "--categories-shown",
        metavar="K",
        type=int,
        default=_CATEGORIES,
        help="number of categories to show, those with most pixels in the ground truth (default: "
        f"{_CATEGORIES})",
    )
    add_model_options(parser)


def gallery(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Draw the gallery; returns the object of ``gallery.json`` with the folder.

    Raises:
        InputError: an option, the dataset or the place of the output cannot be used.
        BackendError: the backend, or torch for a checkpoint, is not installed.
    """
    for option in ("limit", "categories_shown"):
        if getattr(arguments, option) < 1:
            name = option.replace("_", "-")
            raise InputError(f"--{name} is {getattr(arguments, option)}, expected at least 1")
    dataset = open_labelled(arguments.dataset)
    path = arguments.classes_file
    asked = dataset.names if path is None else tuple(read_classes_file(path))
    check_categories(dataset.names, asked, arguments.limit)
    with (
        atomic_directory(arguments.output, kind="gallery", marker=_FIGURES) as folder,
        open_model(arguments.model, arguments.backend, chunk=arguments.chunk) as segmenter,
    ):
        total = len(set(arguments.images or ())) or min(arguments.limit, len(dataset))
        with console.progress("draw", total) as advance:
            document = _draw(arguments, segmenter, dataset, asked, folder, advance)
    _report(arguments.output, document, console)
    return {"gallery": arguments.output, **document}


def _draw(
    arguments: argparse.Namespace,
    segmenter: Segmenter,
    dataset: LabelledImages,
    asked: Sequence[str],
    folder: Path,
    advance: Callable[[str], None],
) -> dict[str, Any]:
    """Write the sheets, the page and the figures into ``folder``."""
    samples = choose(dataset, arguments.images, arguments.limit)
    is_bundle = arguments.model.is_dir()
    conditions = Conditions.now(_METHOD, segmenter.bundle if is_bundle else None)
    model = _model(arguments, segmenter, len(dataset.names))
    vocabulary = segmenter.vocabulary(asked)
    counter = ConfusionCounter(len(dataset.names))
    entries = []
    for sample in samples:
        trace = trace_image(
            segmenter, vocabulary, sample, dataset.names, shown=arguments.categories_shown
        )
        counter.add(trace.prediction, trace.truth)
        sheet = draw_sheet(trace, caption=sheet_caption(model), note=model.note)
        sheet.save(folder / sheet_file(trace.name), optimize=True)
        entries.append(sheet_entry(trace, asked))
        advance(sample.name)
    document = figures(model, entries, counter.scores(), conditions.finished())
    # A lone surrogate, which UTF-8 cannot encode, becomes JSON's escape for it.
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / _FIGURES).write_text(text, encoding="utf-8", errors="backslashreplace")
    (folder / _PAGE).write_text(page(model, document), encoding="utf-8")
    return document


def _model(arguments: argparse.Namespace, segmenter: Segmenter, classes: int) -> GalleryModel:
    manifest = segmenter.bundle.manifest
    return GalleryModel(
        model=manifest.model.name,
        kind="bundle" if arguments.model.is_dir() else "checkpoint",
        precision=manifest.precision.value,
        weights=manifest.model.weights,
        trained=manifest.model.trained,
        backend=segmenter.backend,
        chunk=segmenter.chunk,
        dataset=dataset_name(arguments.dataset),
        classes=classes,
        note=segmenter.note,
    )


def _report(output: Path, document: dict[str, Any], console: Console) -> None:
    count, miou = len(document["images"]), document["miou"]
    score = "none: no pixel is labelled" if miou is None else f"{miou:.2%}"
    console.print(
        f"{count} {'sheet' if count == 1 else 'sheets'} of {document['model']} "
        f"({document['kind']}, {document['precision']}, {document['backend']}) on "
        f"{printable(document['dataset'])}: mIoU {score}\n{output / _PAGE}"
    )
    if document["note"]:
        console.print(f"note: {document['note']}")
