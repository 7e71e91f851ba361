"""``escnet-bench ppg``: the time of the prompt generator on this CPU."""

import argparse
from collections.abc import Sequence
from typing import Final

from rich.table import Table

from escnet_runtime.console import Console

from .command_parts import add_categories_option, require_categories, titled_table
from .conditions import Conditions
from .ppg_time import PpgRow, measure_ppg, runtime_implementations
from .results import Document, result_document

__all__ = ["add_ppg_options", "ppg"]

_METHOD: Final = (
    "wall clock of whole calls, percentiles of the repeats after 3 warm-up calls; all categories "
    "in one call; maps made from a seed"
)


def add_ppg_options(parser: argparse.ArgumentParser) -> None:
    """Add what ``escnet-bench ppg`` takes, besides the common options and ``--output``."""
    add_categories_option(parser, [19, 150, 847])
    parser.add_argument(
        "--grid",
        type=int,
        nargs=2,
        default=[24, 24],
        metavar=("H", "W"),
        help="height and width of a map, in cells (default: 24 24)",
    )
    parser.add_argument(
        "--implementations",
        nargs="+",
        choices=("c", "numpy", "torch"),
        help="implementations to time (default: those of the runtime that are here, c and numpy)",
    )
    parser.add_argument(
        "--repeats", type=int, default=30, metavar="N", help="calls to time (default: 30)"
    )


def ppg(arguments: argparse.Namespace, console: Console) -> Document:
    """Time the prompt generator and show a table; returns the document.

    Raises:
        InputError: a number is out of range.
        BackendError: an implementation that was asked for is not here.
    """
    require_categories(arguments.categories)
    conditions = Conditions.now(_METHOD, device="cpu")
    height, width = arguments.grid
    rows = measure_ppg(
        arguments.categories,
        (height, width),
        implementations=arguments.implementations or runtime_implementations(),
        repeats=arguments.repeats,
    )
    console.print(_table(rows))
    return result_document("ppg", conditions.finished(), rows)


def _table(rows: Sequence[PpgRow]) -> Table:
    table = titled_table(
        "Prompt generator, ms",
        "implementation",
        "maps",
        "categories",
        "p50",
        "p95",
        "p99",
        text=("implementation", "maps"),
    )
    for row in rows:
        times = [f"{value:.2f}" for value in (row.p50_ms, row.p95_ms, row.p99_ms)]
        table.add_row(row.implementation, row.maps, str(row.categories), *times)
    return table
