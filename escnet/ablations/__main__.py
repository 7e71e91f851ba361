"""``python -m escnet.ablations --foundations RUN --output FOLDER``: runs, table and picture."""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from escnet.train.loop import Stopped
from escnet_runtime.atomic import atomic_file
from escnet_runtime.console import Console, command_parser, run_command
from escnet_runtime.errors import InputError

from .page import PICTURE, fill_page
from .plot import plot_of
from .run import RESULTS, Budget, Foundations, Result, read_results, run_ablations
from .table import table_of
from .variants import VARIANTS, variants_called

__all__ = ["main"]

_MOST_SEEDS: Final = 60
_TABLE: Final = "table.md"


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(_parser(), _ablations, argv)


def _parser() -> argparse.ArgumentParser:
    budget = Budget()
    parser = command_parser(
        "python -m escnet.ablations",
        "Train the variants of the paper's ablations in the small world, all with one budget, and "
        "write table.md and table.png. Run it again to resume; what is finished is skipped.",
        epilog=f"variants: {', '.join(variant.name for variant in VARIANTS)}",
    )
    parser.add_argument(
        "--foundations", type=Path, required=True, metavar="RUN", help="where make tiny trained"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these variants (default: all)")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1], metavar="N", help="(default: 0 1)"
    )
    parser.add_argument(
        "--steps", type=int, default=budget.steps, help=f"of each run (default: {budget.steps})"
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=budget.batch,
        metavar="N",
        help=f"scenes of a step (default: {budget.batch})",
    )
    parser.add_argument(
        "--scenes",
        type=int,
        default=budget.count,
        metavar="N",
        help=f"to measure on (default: {budget.count})",
    )
    parser.add_argument(
        "--page",
        type=Path,
        metavar="FILE",
        help="also put table and picture into this Markdown file, such as docs/ablations.md, "
        "where it has a place for the folder's name",
    )
    return parser


def _ablations(arguments: argparse.Namespace, console: Console) -> tuple[int, Mapping[str, Any]]:
    seeds = _seeds(arguments.seeds)
    if arguments.scenes < 1:
        raise InputError(f"--scenes is {arguments.scenes}; expected at least 1")
    budget = dataclasses.replace(
        Budget(), steps=arguments.steps, batch=arguments.batch, count=arguments.scenes
    )
    output: Path = arguments.output
    try:
        for results in run_ablations(
            Foundations.of(arguments.foundations),
            output,
            variants=variants_called(arguments.only),
            seeds=seeds,
            budget=budget,
            console=console,
        ):
            _write(results, output, arguments.page)
    except Stopped as stop:
        told = f"stopped, and saved in {output} (step {stop.step} of a run): run it again to go on"
        console.err.print(told, soft_wrap=True)
        return 128 + stop.number, {"results": read_results(output), "stopped": True}
    results = read_results(output)
    console.print(table_of(results))
    return 0, {
        "results": results,
        "lines": output / RESULTS,
        "table": output / _TABLE,
        "plot": output / PICTURE,
    }


def _seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    for seed in seeds:
        if not 0 <= seed <= _MOST_SEEDS:
            raise InputError(f"--seeds has {seed}; expected 0 to {_MOST_SEEDS}")
    return tuple(dict.fromkeys(seeds))


def _write(results: Sequence[Result], output: Path, page: Path | None) -> None:
    """Table and picture of the results so far."""
    table, picture = table_of(results), plot_of(results)
    with atomic_file(output / _TABLE) as temporary:
        temporary.write_text(table, encoding="utf-8")
    if picture is not None:
        with atomic_file(output / PICTURE) as temporary:
            picture.save(temporary, format="PNG", optimize=True)
    if page is not None:
        fill_page(page, output.resolve().name, table, picture)


if __name__ == "__main__":
    sys.exit(main())
