"""``escnet-bench gflop``: the operations of one image, counted."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from rich.table import Table

from escnet_runtime.console import Console
from escnet_runtime.errors import BackendError

from .command_parts import add_categories_option, require_categories, titled_table
from .conditions import Conditions
from .results import Document, result_document

if TYPE_CHECKING:
    from .gflop import GflopRow

__all__ = ["GFLOP_CHUNK", "add_gflop_options", "gflop"]

#: Categories at a time in the bundles that escnet-export writes.
GFLOP_CHUNK: Final = 16
_PRESET: Final = "tiny"
_SHARED_BLOCKS: Final = ("sam", "fuse", "vlf")


def add_gflop_options(parser: argparse.ArgumentParser) -> None:
    """Add what ``escnet-bench gflop`` takes, besides the common options and ``--output``."""
    add_categories_option(parser, [19, 58, 150, 847])
    parser.add_argument("--preset", default=_PRESET, help=f"a configuration (default: {_PRESET})")
    parser.add_argument(
        "--chunk",
        type=int,
        default=GFLOP_CHUNK,
        metavar="N",
        help="categories at a time in the shipped form, rounded up to whole groups; what they "
        f"share is computed once for each chunk (default: {GFLOP_CHUNK}, as in a bundle)",
    )


def gflop(arguments: argparse.Namespace, console: Console) -> Document:
    """Count and show a table; returns the document.

    Raises:
        InputError: there is no such preset, or a number is out of range.
        BackendError: torch is not installed.
    """
    require_categories(arguments.categories)
    try:
        from escnet.presets import preset

        from .gflop import METHOD, gflop_rows
    except ModuleNotFoundError as error:
        raise BackendError(
            f"counting operations needs {error.name}, which is not installed: install "
            "escnet-bench[torch]"
        ) from error
    config = preset(arguments.preset)
    conditions = Conditions.now(METHOD)
    with console.progress(f"count {config.name}", len(arguments.categories)) as advance:
        rows = gflop_rows(config, arguments.categories, chunk=arguments.chunk, step=advance)
    console.print(_table(rows), METHOD)
    return result_document("gflop", conditions.finished(), rows)


def _table(rows: Sequence["GflopRow"]) -> Table:
    """GFLOP by number of categories and form; the blocks are added up."""
    first = rows[0]
    blocks = sum(name.endswith("_sam") for name in first.stages)
    kinds = [f"{blocks}× {kind}" for kind in _SHARED_BLOCKS]
    table = titled_table(
        f"GFLOP of one image, {first.preset}",
        "categories",
        "form",
        "image encoder",
        "correlation",
        *kinds,
        "decoder",
        "total",
        "of plain",
        text=("form",),
    )
    for row in rows:
        stages = [row.stages["image_encoder"], row.stages["correlation"]]
        stages += [
            sum(value for name, value in row.stages.items() if name.endswith(f"_{kind}"))
            for kind in _SHARED_BLOCKS
        ]
        numbers = [f"{value:,.2f}" for value in (*stages, row.stages["decoder"], row.gflop)]
        form = row.form if row.chunk is None else f"{row.form}, chunks of {row.chunk}"
        table.add_row(str(row.categories), form, *numbers, f"{row.of_plain:.3f}")
    return table
