"""``escnet-bench footprint``: memory and time of a bundle on this device, in fresh processes."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from escnet_runtime.bundle import Bundle
from escnet_runtime.commands.options import add_backend_option, add_chunk_option
from escnet_runtime.console import Console
from escnet_runtime.contract import require_contract
from escnet_runtime.vocabulary import read_classes_file

from .command_parts import add_categories_option, megabytes, require_categories, titled_table
from .conditions import Conditions
from .footprint import METHOD, FootprintRow, Startup, measure_footprint
from .results import Document, result_document

__all__ = ["add_footprint_options", "footprint"]


def add_footprint_options(parser: argparse.ArgumentParser) -> None:
    """Add what ``escnet-bench footprint`` takes, besides the common options and ``--output``."""
    add_categories_option(parser, [19, 150, 847])
    parser.add_argument(
        "--bundle", type=Path, required=True, metavar="BUNDLE", help="folder of the bundle"
    )
    parser.add_argument(
        "--image",
        type=Path,
        metavar="FILE",
        help="image to segment (default: a made-up one of 640×480)",
    )
    parser.add_argument(
        "--classes-file",
        type=Path,
        metavar="FILE",
        help="file of category names, of which the first ones are used (default: generated names)",
    )
    parser.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="images to time (default: 3)"
    )
    add_backend_option(parser)
    add_chunk_option(parser)


def footprint(arguments: argparse.Namespace, console: Console) -> Document:
    """Measure and show tables; returns the document.

    Raises:
        InputError: a number is out of range, or a file cannot be used.
        BackendError: the backend is not here, or a measured process ended without an answer.
    """
    require_categories(arguments.categories)
    path = arguments.classes_file
    names = None if path is None else read_classes_file(path)
    bundle = Bundle.open(arguments.bundle)
    require_contract(bundle.manifest)  # an error here, not in each process that measures
    conditions = Conditions.now(METHOD, bundle, device="cpu")
    with console.progress("measure", 2 * len(arguments.categories)) as advance:
        rows = measure_footprint(
            arguments.bundle,
            arguments.categories,
            image=arguments.image,
            names=names,
            repeats=arguments.repeats,
            backend=arguments.backend,
            chunk=arguments.chunk,
            step=advance,
        )
    first = rows[0]
    console.print(
        f"{first.backend}, chunks of {first.chunk} categories, image {first.image}",
        _memory_table(rows),
        _startup_table(rows),
        _stage_table(rows),
    )
    return result_document("footprint", conditions.finished(), rows)


def _memory_table(rows: Sequence[FootprintRow]) -> Table:
    table = titled_table("Memory and time", "categories", "s an image", "prompts", "peak MB")
    for row in rows:
        table.add_row(
            str(row.categories),
            f"{row.image_seconds:.3f}",
            f"{row.prompt_share:.1%}",
            megabytes(row.peak_memory_bytes),
        )
    return table


def _startup_table(rows: Sequence[FootprintRow]) -> Table:
    steps = ("interpreter", "imports", "open", "vocabulary", "image", "total")
    title = "Seconds to the first label map"
    table = titled_table(
        title, "categories", "text cache", *steps, "peak MB until then", text=("text cache",)
    )
    for row in rows:
        caches: tuple[tuple[str, Startup], ...] = (
            ("empty", row.empty_cache),
            ("filled", row.filled_cache),
        )
        for name, startup in caches:
            seconds = [f"{getattr(startup, step):.3f}" for step in steps]
            peak = megabytes(startup.peak_memory_bytes)
            table.add_row(str(row.categories), name, *seconds, peak)
    return table


def _stage_table(rows: Sequence[FootprintRow]) -> Table:
    """A row for each stage, since there are more stages than numbers of categories."""
    columns = [f"N = {row.categories}" for row in rows]
    table = titled_table("Seconds of each stage, an image", "stage", *columns, text=("stage",))
    for stage in rows[0].stages:
        table.add_row(stage, *[f"{row.stages[stage]:.4f}" for row in rows])
    return table
