"""Shared by the commands of several benchmarks: the option ``--categories``, and tables."""

import argparse
from collections.abc import Collection, Sequence

from rich.table import Table

from escnet_runtime.errors import InputError
from escnet_runtime.vocabulary import MAX_CATEGORIES

__all__ = ["add_categories_option", "megabytes", "require_categories", "titled_table"]


def add_categories_option(parser: argparse.ArgumentParser, default: Sequence[int]) -> None:
    """Add ``--categories``; :func:`require_categories` checks its numbers."""
    parser.add_argument(
        "--categories",
        type=int,
        nargs="+",
        default=list(default),
        metavar="N",
        help=f"numbers of categories (default: {' '.join(map(str, default))})",
    )


def require_categories(counts: Sequence[int]) -> None:
    """Raise InputError for a number of categories that no vocabulary can have."""
    for count in counts:
        if not 1 <= count <= MAX_CATEGORIES:
            raise InputError(f"--categories has {count}, expected 1 to {MAX_CATEGORIES}")


def titled_table(title: str, *columns: str, text: Collection[str] = ()) -> Table:
    """An empty table; the columns named in ``text`` hold words, all others hold numbers."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in text else "right")
    return table


def megabytes(size: int | None) -> str:
    """Bytes in whole MB; "unknown" for None."""
    return "unknown" if size is None else f"{size / 1e6:,.0f}"
