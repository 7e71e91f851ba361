"""``escnet-bench report``: the page and the plots of result files, and the README's table."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from escnet_runtime.atomic import atomic_file
from escnet_runtime.console import Console, printable
from escnet_runtime.errors import BackendError, InputError

from .bars import stage_bars
from .facts import Result
from .files import find_results, read_result
from .page import Sections, report_page
from .readme import RESULTS, updated_readme

__all__ = ["add_report_options", "report"]

_PAGE: Final = "report.html"
_FOLDER: Final = "report"
_EPILOG: Final = f"""\
FILE: a result file as escnet-bench BENCHMARK --output FILE and escnet-eval --output FILE write it,
a folder (every *.json in it) or a pattern; files may come from any number of machines. One that is
no result file, is damaged or has a newer schema is an error that names it. Files whose results are
not shown are named on the page.

escnet-bench report results/ theirs.json --output DIR     DIR/{_PAGE} and DIR/*.png
escnet-bench report benchmarks/results --readme README.md  the table in a README, nothing else
"""


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """Add what ``escnet-bench report`` takes, besides the common options."""
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("files", metavar="FILE", nargs="+", help="result files, folders, patterns; see below")
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help=f"folder of {_PAGE} and the plots (default: {_FOLDER})",
    )
    add(
        "--baseline",
        metavar="NAME",
        help="the implementation that others are compared with (default: torch, in eager mode)",
    )
    add("--no-plots", action="store_true", help=f"{_PAGE} alone, which needs no matplotlib")
    add(
        "--readme",
        type=Path,
        metavar="FILE",
        help=f"instead, rewrite the table of {RESULTS}/footprint-*.json in this file",
    )


def report(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Write the report, or the README's table; returns what ``--json`` prints.

    Raises:
        InputError: a file is no result file, or a place cannot be written.
        BackendError: matplotlib is not installed and plots are wanted.
    """
    results = _read(arguments.files)
    if arguments.readme is not None:
        if arguments.output or arguments.baseline or arguments.no_plots:
            raise InputError("--readme writes only its table: leave the other options out")
        return _readme(arguments.readme, results, console)
    names = {one.implementation for result in results for one in result.timings}
    if arguments.baseline is not None and arguments.baseline not in names:
        raise InputError(
            f"--baseline {arguments.baseline}: nothing of that name was timed; there are "
            f"{', '.join(sorted(names)) or 'no times'}"
        )
    unused = [{"file": one.file, "reason": one.unused} for one in results if one.unused]
    if len(unused) == len(results):
        raise InputError(f"nothing to show: {unused[0]['file']}: {unused[0]['reason']}")
    folder = arguments.output or Path(_FOLDER)
    plots = [] if arguments.no_plots else _plots(results, folder)
    with atomic_file(folder / _PAGE) as temporary:
        page = report_page(results, baseline=arguments.baseline)
        temporary.write_text(page, encoding="utf-8")
    document = {
        "report": str(folder / _PAGE),
        "plots": [str(path) for path in plots],
        "machines": list(dict.fromkeys(one.machine.label for one in results if not one.unused)),
        "files": [one.file for one in results if not one.unused],
        "not_shown": unused,
        "rows": {
            "latency": sum(one.p50_ms is not None for r in results for one in r.timings),
            "accuracy": sum(len(one.accuracies) for one in results),
            "operations": sum(len(one.operations) for one in results),
            "left_out": sum(len(one.left_out) for one in results),
        },
    }
    console.print(*_summary(document))
    return document


def _read(sources: Sequence[str]) -> list[Result]:
    return [read_result(path, name) for name, path in find_results(sources)]


def _plots(results: Sequence[Result], folder: Path) -> list[Path]:
    """Draw the plots for which there are measurements."""
    try:
        from .plots import save_bars, save_panels
    except ModuleNotFoundError as error:
        raise BackendError(
            f"plots need {error.name}, which is not installed: install escnet-bench[report], or "
            "take --no-plots"
        ) from error
    sections = Sections.of(results)
    written = []
    for name, title, panels in (
        ("latency", "Latency by number of categories", sections.latency),
        ("memory", "Peak memory by number of categories", sections.memory),
        ("gpu-memory", "Memory on the GPU by number of categories", sections.device_memory),
        ("miou-latency", "mIoU against latency", sections.miou),
        ("agreement-latency", "Labels equal to float32 PyTorch's", sections.agreement),
        ("same-latency", "Labels equal to ours", sections.same),
    ):
        if panels:
            with atomic_file(folder / f"{name}.png") as temporary:
                save_panels(panels, title, temporary)
            written.append(folder / f"{name}.png")
    if bars := stage_bars(results):
        with atomic_file(folder / "stages.png") as temporary:
            save_bars(bars, "Where the time goes", temporary)
        written.append(folder / "stages.png")
    return written


def _readme(path: Path, results: Sequence[Result], console: Console) -> dict[str, Any]:
    try:
        before = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    after = updated_readme(before, results, path.name)
    if after != before:
        with atomic_file(path) as temporary:
            temporary.write_text(after, encoding="utf-8")
    console.print(f"{path}: {'rewritten' if after != before else 'was up to date'}")
    return {"readme": str(path), "changed": after != before}


def _summary(document: dict[str, Any]) -> list[Table | str]:
    table = Table(title=printable(document["report"]), title_justify="left")
    for name in ("what", "rows"):
        table.add_column(name, justify="right" if name == "rows" else "left")
    for what, count in document["rows"].items():
        table.add_row(what.replace("_", " "), str(count))
    lines = [f"machines: {', '.join(map(printable, document['machines']))}"]
    lines += [f"plot: {path}" for path in document["plots"]]
    lines += [
        f"not shown: {printable(entry['file'])}: {printable(entry['reason'])}"
        for entry in document["not_shown"]
    ]
    return [table, "\n".join(lines)]
