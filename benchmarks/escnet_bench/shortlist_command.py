"""``escnet-bench shortlist``: what giving the model fewer categories saves and costs."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.table import Table

from escnet_runtime.commands.options import add_backend_option, add_chunk_option
from escnet_runtime.console import Console
from escnet_runtime.errors import InputError
from escnet_runtime.labelled import SHAPES, dataset_name
from escnet_runtime.shortlist import parse_shortlist

from .command_parts import require_categories
from .conditions import Conditions, device_of
from .distractors import WORLD, distractor_names
from .models import CHECKPOINT_SUFFIX, open_model
from .results import Document, result_document
from .shortlist import METHOD, ShortlistRow, measure_shortlists, open_pictures, variants

__all__ = ["add_shortlist_options", "shortlists"]

_WHERE: Final = ("correlation", "first-block")


def add_shortlist_options(parser: argparse.ArgumentParser) -> None:
    """Add what ``escnet-bench shortlist`` takes, besides the common options and ``--output``."""
    add = parser.add_argument
    kinds = f"a folder, or a {CHECKPOINT_SUFFIX} file (needs torch)"
    add("model", metavar="BUNDLE|CHECKPOINT", type=Path, help=kinds)
    text = "shapes:heldout, a dataset folder, or a folder of images without labels"
    add("images", metavar="DATASET|DIR", help=text)
    add(
        "--categories",
        type=int,
        nargs="+",
        default=[847],
        metavar="N",
        help="numbers of categories: the dataset's own, filled up with distractors (default: 847)",
    )
    add(
        "--shortlist",
        type=parse_shortlist,
        nargs="+",
        default=[16, 32, 64, "auto"],
        metavar="K|auto",
        help="shortlists to compare with the full model (default: 16 32 64 auto)",
    )
    add(
        "--where",
        choices=_WHERE,
        nargs="+",
        default=["correlation"],
        help="the scores that choose: the correlation, or those after the first block, which then "
        "runs for all categories; auto works with the correlation only (default: correlation)",
    )
    add(
        "--distractors",
        metavar=f"{WORLD}|FILE",
        help=f"names to add to the dataset's own: {WORLD}, names made from the small world's "
        f"words, or a file of categories (default: {WORLD} for shapes:...)",
    )
    add("--limit", type=int, default=40, metavar="N", help="the first N images (default: 40)")
    add_backend_option(parser, torch=True)
    add_chunk_option(parser)


def shortlists(arguments: argparse.Namespace, console: Console) -> Document:
    """Measure; returns the document.

    Raises:
        InputError: an option cannot be used.
    """
    _check(arguments)
    pictures = open_pictures(arguments.images, arguments.limit)
    source = arguments.distractors or (WORLD if arguments.images.startswith(SHAPES) else None)
    names = () if source is None else distractor_names(source)
    chosen = variants(arguments.shortlist, arguments.where)
    if not chosen:
        raise InputError(
            "--shortlist auto is for --where correlation; give a number of categories as well"
        )
    with open_model(arguments.model, arguments.backend, chunk=arguments.chunk) as segmenter:
        conditions = Conditions.now(
            f"{METHOD}; images: the first {len(pictures)} of {dataset_name(arguments.images)}; "
            f"distractors: {_called(source)}; {segmenter.backend}, chunks of {segmenter.chunk}"
            + ("" if segmenter.note is None else f"; {segmenter.note}"),
            segmenter.bundle if arguments.model.is_dir() else None,
            device=device_of(segmenter),
        )
        total = len(pictures) * len(arguments.categories)
        with console.progress("measure", total) as advance:
            rows = measure_shortlists(
                segmenter, pictures, names, arguments.categories, chosen, step=advance
            )
    console.print(_table(rows, conditions), METHOD)
    return result_document("shortlist", conditions.finished(), rows)


def _check(arguments: argparse.Namespace) -> None:
    if arguments.limit < 1:
        raise InputError(f"--limit is {arguments.limit}, expected at least 1")
    require_categories(arguments.categories)


def _called(source: str | None) -> str:
    if source is None:
        return "none"
    return "other names of the small world's words" if source == WORLD else Path(source).name


def _table(rows: Sequence[ShortlistRow], conditions: Conditions) -> Table:
    model = "checkpoint" if conditions.bundle is None else conditions.bundle.model
    table = Table(title=f"Shortlists of {model}, {rows[0].images} images", title_justify="left")
    table.add_column("categories", justify="right")
    table.add_column("shortlist")
    for title in ("kept", "most", "ms", "speed", "mIoU", "loss, points", "equal labels"):
        table.add_column(title, justify="right")
    for row in rows:
        name = "all" if row.shortlist is None else f"{row.shortlist}, {row.where}"
        table.add_row(
            str(row.categories),
            name,
            f"{row.kept_mean:.1f}",
            str(row.kept_max),
            f"{row.p50_ms:,.0f}",
            f"{row.speedup:.1f}×",
            "" if row.miou is None else f"{row.miou:.2%}",
            "" if row.miou_loss is None else f"{100 * row.miou_loss:+.2f}",
            f"{row.agreement:.2%}",
        )
    return table
