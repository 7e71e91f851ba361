"""``escnet-bench builds``: what compiling a bundle's graphs takes, and the size of the engines."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from escnet_engines import COMPILERS
from escnet_runtime.bundle import Bundle
from escnet_runtime.console import Console

from .builds import METHOD, BuildRow, measure_builds
from .command_parts import megabytes, titled_table
from .conditions import Conditions
from .results import Document, result_document

__all__ = ["add_builds_options", "builds"]


def add_builds_options(parser: argparse.ArgumentParser) -> None:
    """Add what ``escnet-bench builds`` takes, besides the common options and ``--output``."""
    parser.add_argument(
        "--bundle", type=Path, required=True, metavar="BUNDLE", help="folder of the bundle"
    )
    parser.add_argument(
        "--backend",
        choices=COMPILERS,
        default="tensorrt-rtx",
        help="the compiler (default: tensorrt-rtx)",
    )
    parser.add_argument(
        "--target",
        default="sm_86",
        metavar="sm_86,...",
        help="GPUs to compile for (default: sm_86)",
    )
    parser.add_argument(
        "--chunk",
        type=int,
        nargs="+",
        default=[16, 32, 64, 128],
        metavar="N",
        help="categories at a time; each graph is built once for each (default: 16 32 64 128)",
    )


def builds(arguments: argparse.Namespace, console: Console) -> Document:
    """Compile and show a table; returns the document.

    Raises:
        BundleError: the bundle cannot be used.
        BackendError: the compiler is not installed.
        BuildError: a graph does not compile.
    """
    bundle = Bundle.open(arguments.bundle)
    conditions = Conditions.now(METHOD, bundle)
    with console.progress("compile", None) as advance:
        rows = measure_builds(
            bundle,
            arguments.chunk,
            backend=arguments.backend,
            target=arguments.target,
            step=advance,
        )
    console.print(_table(rows), METHOD)
    return result_document("builds", conditions.finished(), rows)


def _table(rows: Sequence[BuildRow]) -> Table:
    first = rows[0]
    table = titled_table(
        f"Builds of {first.model} at {first.precision}, {first.library}",
        "graph",
        "chunk",
        "ONNX MB",
        "engine MB",
        "scratch MB",
        "s",
        "host MB",
        text=("graph",),
    )
    for row in rows:
        sizes = (row.onnx_bytes, row.engine_bytes, row.scratch_bytes)
        table.add_row(
            row.graph,
            str(row.chunk),
            *["unknown" if size is None else f"{size / 1e6:,.1f}" for size in sizes],
            f"{row.seconds:.2f}",
            megabytes(row.host_bytes),
        )
    return table
